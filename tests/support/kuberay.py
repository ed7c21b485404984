"""What the job uses of KubeRay's RayJob (ray.io/v1): names and types of fields.

Noted from the CRD's API reference (ray-project/kuberay, docs/reference/api.md at 0057210: RayJobSpec, RayClusterSpec,
HeadGroupSpec, WorkerGroupSpec); `authOptions`, which is younger, from Ray's documentation of token authentication.
No registry has a package of that CRD. Fields that are not here are refused: look them up there before they are added.
Pod templates are Kubernetes' own and are validated against its published schemas.
"""

from typing import Any

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
POD_TEMPLATE: dict[str, Any] = {"type": "object", "required": ["spec"]}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


HEAD_GROUP = _object(["rayStartParams", "template"], rayStartParams=STRINGS, template=POD_TEMPLATE)
WORKER_GROUP = _object(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName={"type": "string"},
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=STRINGS,
    template=POD_TEMPLATE,
)
CLUSTER = _object(
    ["headGroupSpec"],
    rayVersion={"type": "string"},
    authOptions=_object([], mode={"enum": ["disabled", "token"]}),
    headGroupSpec=HEAD_GROUP,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
RAY_JOB = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object(
        ["name"],
        name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47},
        namespace={"type": "string"},
    ),
    spec=_object(
        [],
        entrypoint={"type": "string"},
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT | {"minimum": 1},
        rayClusterSpec=CLUSTER,
    ),
)
