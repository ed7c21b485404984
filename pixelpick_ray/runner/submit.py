"""Batch jobs: a template from cluster/ filled in for one experiment, and the command that submits it.

Every value is quoted for its target language: words in #SBATCH lines are checked, words in shell scripts are quoted
with shlex, and Kubernetes objects are written by a YAML emitter.
"""

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pixelpick_ray.config.execution import Execution
from pixelpick_ray.config.extends import whole_text
from pixelpick_ray.config.shipped import PACKAGE, SHIPPED, STAMP, code_commit, code_digest
from pixelpick_ray.errors import RunError, SpecError

BLOCK = re.compile(r"(?<=# >>> filled by submit\n).*?(?=^# <<< filled by submit)", flags=re.DOTALL | re.MULTILINE)
WORD = re.compile(r"[A-Za-z0-9_.,:=@%+/-]+")
COPIES = SHIPPED / "launch.py", PACKAGE  # the code that a job runs
DAY, HOUR, MINUTE = 86400, 3600, 60


@dataclass(frozen=True)
class Request:
    """What a batch job runs and requests; None leaves the choice to the template or the cluster."""

    name: str
    experiment: Path
    run_options: tuple[str, ...]
    nodes: int = 1
    cpus_per_node: int = 8
    gpus_per_node: int = 1
    memory_gib: int | None = None
    seconds: float | None = None
    folder: str | None = None
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    namespace: str | None = None
    claim: str | None = None
    address: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)  # needed by the experiment, by path relative to its file

    def files(self, *, flat: bool = False) -> dict[str, str]:
        """Return the experiment and its sources as files of the job's folder, without subfolders if `flat`.

        Raises SpecError for a source that cannot be placed there.
        """
        for path in self.sources:
            if path.startswith("/") or ".." in Path(path).parts:
                raise SpecError(
                    f"file:{path}: is outside the folder of {self.experiment.name}; move it into that folder"
                )
            if flat and "/" in path:
                raise SpecError(
                    f"file:{path}: a ConfigMap cannot contain folders; move it next to {self.experiment.name}"
                )
        return {"experiment.yaml": whole_text(self.experiment), **self.sources}

    def check(self, execution: Execution) -> None:
        """Raise SpecError if the nodes cannot hold one trial, or if the job would only wait."""
        if execution.wait:
            raise SpecError(
                "--wait: not allowed in a job, which would occupy its nodes while people answer; "
                "submit the job again afterwards"
            )
        gpus = execution.gpus_of_rank(are_there=self.gpus_per_node > 0)
        if execution.device == "cuda" and not self.gpus_per_node:
            raise SpecError("--device cuda with --gpus-per-node 0: ask for GPUs, or use --device cpu")
        for kind, rank, node in (
            ("CPU", execution.cpus_per_rank, self.cpus_per_node),
            ("GPU", gpus, self.gpus_per_node),
        ):
            fitting = self.nodes * int(node // rank) if rank else execution.ranks
            if fitting < execution.ranks:
                raise SpecError(
                    f"a trial of {execution.ranks} ranks with {rank:g} {kind}s each does not fit on {self.nodes} nodes "
                    f"with {node} {kind}s; raise --nodes or --{kind.lower()}s-per-node, or lower --ranks"
                )


@dataclass(frozen=True)
class BatchJob:
    """Files of a batch job by name, paths copied into its folder, and the command that submits it.

    `needs` is a module that the command requires.
    """

    folder: Path
    files: dict[str, str]
    command: list[str]
    copies: tuple[Path, ...] = ()
    needs: str = ""

    def shown(self) -> str:
        """Return everything that would be submitted, and the command, as text."""
        files = [f"# {self.folder / name}\n{text.rstrip()}\n" for name, text in self.files.items()]
        copies = [f"# {self.folder / path.name}: a copy of {path}\n" for path in self.copies]
        return "\n".join([*files, *copies, f"# the command\n{shlex.join(self.command)}"])

    def submit(self) -> str:
        """Write the files and run the command; return its output.

        Raises SpecError if the program is not installed, RunError if it fails.
        """
        if shutil.which(self.command[0]) is None or (self.needs and importlib.util.find_spec(self.needs) is None):
            raise SpecError(_absent(self.command[0]))
        self.folder.mkdir(parents=True)
        for name, text in self.files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8")
        for path in self.copies:
            if path.is_dir():
                shutil.copytree(path, self.folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, self.folder)
        if self.copies:
            made_of = f"{code_commit()}, files {code_digest()}\n"
            (self.folder / PACKAGE.name / STAMP).write_text(made_of, encoding="utf-8")
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            raise RunError(
                f"{shlex.join(self.command)} failed with status {done.returncode}: {done.stderr or done.stdout}"
            )
        return done.stdout


def _absent(program: str) -> str:
    if Path(program).name == "ray":
        return 'ray job submit needs Ray with its job server: python -m pip install "ray[default]"'
    return f"{program} is not on PATH: submit where it is installed, or use --dry-run to see the job"


def slurm_job(request: Request) -> BatchJob:
    """Make a job for a Ray cluster inside a Slurm allocation; it copies code and experiment, which may change here."""
    folder = _job_folder(request)
    directives = {
        "job-name": request.name,
        "nodes": request.nodes,
        "cpus-per-task": request.cpus_per_node,
        "gres": f"gpu:{request.gpus_per_node}" if request.gpus_per_node else None,
        "mem": f"{request.memory_gib}G" if request.memory_gib else "0",
        "time": _slurm_time(request.seconds) if request.seconds else None,
        "partition": request.partition,
        "account": request.account,
        "output": "%x-%j.log",
    }
    lines = [f"#SBATCH --{name}={_word(name, value)}" for name, value in directives.items() if value is not None]
    lines += [
        f"project={shlex.quote(str(folder))}",
        f"environment={shlex.quote(str(Path(sys.executable).parent))}",
        f"folder={shlex.quote(request.folder or str(Path.cwd()))}",
        f"run=({shlex.join([str(folder / 'experiment.yaml'), *request.run_options])})",
    ]
    files = {"experiment.sbatch": _filled("slurm/experiment.sbatch", lines), **request.files()}
    return BatchJob(folder, files, ["sbatch", str(folder / "experiment.sbatch")], copies=COPIES)


def kubernetes_job(request: Request) -> BatchJob:
    """Make a RayJob for the KubeRay operator, with the experiment in a ConfigMap. Raises SpecError without an image."""
    if not (request.image and request.claim):
        raise SpecError(
            "--to kubernetes needs --image, built from cluster/kubernetes/Dockerfile, and --claim, the name of a "
            "volume claim that every node can mount; it holds the data and the results"
        )
    folder, shared = _job_folder(request), request.folder or "/shared"
    name = f"{re.sub('[^a-z0-9]+', '-', request.name)[:28].strip('-')}-{folder.name}"
    name = name if name[0].isalpha() else f"p-{name}"  # KubeRay allows 47 characters, starting with a letter
    config, job = yaml.safe_load_all(_template("kubernetes/rayjob.yaml"))
    for tree in (config, job):
        tree["metadata"] = {"name": name} | ({"namespace": request.namespace} if request.namespace else {})
    config["data"] = {"job.sh": _job_script(shared, request), **request.files(flat=True)}
    spec = job["spec"]
    spec.pop("activeDeadlineSeconds")
    if request.seconds:
        spec["activeDeadlineSeconds"] = int(request.seconds)
    cluster = spec["rayClusterSpec"]
    _fill_pod(cluster["headGroupSpec"]["template"]["spec"], request, shared, config=name)
    for group in cluster["workerGroupSpecs"]:
        wanted = (group["groupName"] == "gpu") == bool(request.gpus_per_node)
        group["replicas"] = group["maxReplicas"] = request.nodes if wanted else 0
        _fill_pod(group["template"]["spec"], request, shared, config=name)
        amounts = {"cpu": request.cpus_per_node, "memory": f"{request.memory_gib or 4 * request.cpus_per_node}Gi"}
        if group["groupName"] == "gpu":
            amounts["nvidia.com/gpu"] = max(1, request.gpus_per_node)
        group["template"]["spec"]["containers"][0]["resources"] = {"requests": amounts, "limits": amounts}
    text = yaml.dump_all([config, job], Dumper=_KubernetesDumper, sort_keys=False, width=120)
    return BatchJob(folder, {"rayjob.yaml": text}, ["kubectl", "create", "-f", str(folder / "rayjob.yaml")])


def ray_job(request: Request) -> BatchJob:
    """Make a job for a running Ray cluster, which takes the package along. Raises SpecError without an address."""
    if not (request.address and request.folder):
        raise SpecError(
            "--to ray needs --address, such as http://HEAD:8265, and --folder, a folder that every node sees and "
            "where the relative paths of --data and --store start"
        )
    folder = _job_folder(request)
    files = {"job.sh": _job_script(request.folder, request), **request.files()}
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--address", request.address, "--working-dir", str(folder), "--no-wait"]
    command += ["--", "bash", "job.sh", ".", "experiment.yaml"]
    return BatchJob(folder, files, command, copies=COPIES, needs="aiohttp_cors")


MAKERS: dict[str, Callable[[Request], BatchJob]] = {"slurm": slurm_job, "kubernetes": kubernetes_job, "ray": ray_job}
SIZES = {"nodes", "cpus_per_node", "gpus_per_node", "memory_gib", "seconds"}
OPTIONS = {  # fields of Request that each kind of cluster supports
    "slurm": SIZES | {"folder", "partition", "account"},
    "kubernetes": SIZES | {"folder", "image", "namespace", "claim"},
    "ray": {"folder", "address"},
}


class _KubernetesDumper(yaml.SafeDumper):
    """Writes multi-line text as blocks where YAML allows it, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Represent text in literal style if it has several lines."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_KubernetesDumper.add_representer(str, _KubernetesDumper.represent_text)


def _fill_pod(pod: dict[str, Any], request: Request, shared: str, *, config: str) -> None:
    pod["containers"][0]["image"] = request.image
    for mount in pod["containers"][0]["volumeMounts"]:
        if mount["name"] == "shared":
            mount["mountPath"] = shared
    for volume in pod["volumes"]:
        if volume["name"] == "shared":
            volume["persistentVolumeClaim"]["claimName"] = request.claim
        if volume["name"] == "job":
            volume["configMap"]["name"] = config


def _job_script(folder: str, request: Request) -> str:
    lines = [f"folder={shlex.quote(folder)}", f"options=({shlex.join(request.run_options)})"]
    return _filled("ray/job.sh", lines)


def _filled(template: str, lines: list[str]) -> str:
    """The template with `lines` between its marks."""
    text = "".join(f"{line}\n" for line in lines)
    return BLOCK.sub(lambda _: text, _template(template), count=1)


def _template(name: str) -> str:
    return _text(SHIPPED / "cluster" / name)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _job_folder(request: Request) -> Path:
    stamp = datetime.now().strftime("%m%d-%H%M%S-%f")[:-3]
    return Path("runs", request.name, "submit", stamp).absolute()


def _word(name: str, value: object) -> str:
    """Check a value of an #SBATCH line, since no quoting is read alike by all versions of Slurm. Raises SpecError."""
    if not WORD.fullmatch(str(value)):
        raise SpecError(f"--{name}: {value!r} given; letters, digits and _ . , : = @ % + / - are allowed")
    return str(value)


def _slurm_time(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // DAY}-{whole % DAY // HOUR:02}:{whole % HOUR // MINUTE:02}:{whole % MINUTE:02}"
