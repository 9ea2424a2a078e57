"""Plain LoRA (arXiv 2106.09685) on all attention linears of the denoiser: the floor of comparisons.

DreamBooth's recipe without prior preservation, as ZipLoRA, DuoLoRA and K-LoRA train the adapters
that they merge: text encoders frozen, one trigger word in every caption.
"""

from b4m.adapters.adapter import Adapter
from b4m.data.manifest import training_rows
from b4m.methods import Training
from b4m.training.plain import train_pairs
from b4m.training.run import Run
from b4m.training.settings import PairSettings


def train(run: Run[PairSettings]) -> Adapter:
    """Train an adapter of one content or one style."""
    return train_pairs(run, run.linears())


TRAINING = Training(PairSettings, train, training_rows)
