"""An experiment of one short training, and a value that every language would have to quote."""

TINY = """
name: tiny
dataset: {name: scenes, size: [32, 48], images: 7}
model: {backbone: mobilenetv2_035, pretrained: none, dropout: [0.0, 0.0, 0.0]}
train: {epochs: 1, batch_size: 4, optimizer: {name: adam, lr: 1e-3}}
evaluate: {splits: {test: {}}, report: test}
grid:
  - {acquire.strategy: [margin], seed: [0], budget: [10]}
"""
AWKWARD = 'it\'s "so" $(touch broken) `x` $HOME * \\ ;#\nand a second line'
