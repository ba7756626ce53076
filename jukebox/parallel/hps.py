"""Keys that say where a program runs, and how much it says."""

from jukebox.hparams.resolve import key, section


@section("launch", "Processes, devices, messages")
class LaunchHps:
    device: str = key("auto", "auto = a GPU of this process's own where there is one, else cpu; or cpu, cuda, cuda:1")
    threads: int = key(0, "threads per process; 0 = the cores of this machine shared out over its processes", ge=0)
    port: int = key(0, "port where the processes of a run find each other; 0 = a free one", ge=0, le=65535)
    dist_timeout: float = key(600.0, "longest wait of one process for the others", unit="s", gt=0)
    quiet: bool = key(False, "show warnings and errors only")
