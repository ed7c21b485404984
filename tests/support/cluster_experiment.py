"""An experiment of one short training, and a value that every language would have to quote."""

from tests.support.experiments import experiment_text

TINY = experiment_text(
    dataset="{name: scenes, size: [32, 48], images: 7}",
    model="{backbone: mobilenetv2_035, pretrained: none, dropout: [0.0, 0.0, 0.0]}",
    grid="[{acquire.strategy: [margin], seed: [0], budget: [10]}]",
)


KINDS = {
    "slurm": ["--to", "slurm"],
    "kubernetes": ["--to", "kubernetes", "--image", "i", "--claim", "c"],
    "ray": ["--to", "ray", "--address", "http://head:8265", "--folder", "/shared"],
}
AWKWARD = 'it\'s "so" $(touch broken) `x` $HOME * \\ ;#\nand a second line'
