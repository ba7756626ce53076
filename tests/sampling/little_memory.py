"""Samples four songs twice, at first in an address space that has no room for the caches of all four."""

import json
import resource

import torch

from jukebox.nn.transformer import TransformerShape
from jukebox.prior.model import Prior, PriorShape
from jukebox.sampling import memory, walk
from jukebox.sampling.hps import SongHps
from jukebox.sampling.levels import LevelSinger, Song
from jukebox.sampling.logits import Knobs
from jukebox.sampling.plan import LevelPlan
from jukebox.sampling.requests import LevelSettings, requests_of
from jukebox.sampling.schedule import Schedule, goals

N, SONGS, CHUNK = 1024, 4, 128


def make() -> tuple[Prior, LevelPlan]:
    """A prior whose columns need a cache of 17 MB for a song."""
    torch.manual_seed(0)
    shape = TransformerShape(n=N, width=128, depth=6, heads=2, attn_order=2, blocks=64, m_attn=8.0)
    prior = Prior(PriorShape(0, hops=(1,), bins=16, n_ctx=N, transformer=shape)).eval().requires_grad_(False)
    return prior, LevelPlan(0, N, N // 2, 1, None)


def sing(prior: Prior, plan: LevelPlan, songs: int) -> list[Song]:
    """The last codes of so many songs."""
    made = [Song(request, N + 8, N + 8) for request in requests_of(SongHps(), 0, songs)]
    for song in made:
        song.codes[0] = torch.arange(N - 8).remainder(16).numpy()
    settings = LevelSettings(Knobs(), CHUNK, SONGS)
    schedule = Schedule({0: plan}, goals(made, {0: plan}), lambda request, level: settings)
    windows = list(walk.walk(made, schedule, lambda level, settings: LevelSinger(prior, plan, settings)))
    rooms.windows = len(windows)
    return made


class rooms:  # noqa: N801 - a place to look at
    last: memory.Room
    windows = 0


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()


def main() -> None:
    torch.set_num_threads(1)

    class Seen(memory.Room):
        def __init__(self, level: int) -> None:
            super().__init__(level)
            rooms.last = self

    walk.Room = Seen  # type: ignore[misc]
    prior, plan = make()
    one = prior.new_state(1).nbytes()
    sing(prior, plan, 1)  # what libraries take once
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + 7 * one // 2, -1))
    little = [song.codes[0].tolist()[-16:] for song in sing(prior, plan, SONGS)]
    most, windows = rooms.last.most, rooms.windows
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    free = [song.codes[0].tolist()[-16:] for song in sing(prior, plan, SONGS)]
    assert rooms.last.most >= SONGS
    print(json.dumps({"free": free, "little": little, "most": most, "windows": windows}))


if __name__ == "__main__":
    main()
