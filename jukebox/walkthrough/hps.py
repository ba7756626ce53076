"""Keys of the demo."""

from jukebox.hparams.resolve import key, section


@section("walkthrough", "Demo")
class WalkthroughHps:
    out: str = key("demo", "folder for everything the demo makes")
    ranks: int = key(2, "processes that train together, started by mpiexec; 1 = without it", ge=1)
    seed: int = key(0, "seed of the corpus, of training and of sampling", ge=0)
    effort: float = key(1.0, "factor on all training steps; the bounds hold for 1", gt=0)
