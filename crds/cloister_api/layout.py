"""Where a run's files lie in the store: the run folder, and the output prefix with its one pointer."""

from __future__ import annotations

from dataclasses import dataclass


def join(uri: str, *parts: str) -> str:
    """`uri` with `parts` below it, one slash between each."""
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


@dataclass(frozen=True)
class RunLayout:
    """`<runUri>/<uid>/`: what a run needs to go on, deleted by publish on success."""

    run_uri: str
    uid: str

    @property
    def root(self) -> str:
        """The run folder."""
        return join(self.run_uri, self.uid)

    @property
    def run_file(self) -> str:
        """The run file, as every step was told it."""
        return join(self.root, "run.json")

    @property
    def plan_file(self) -> str:
        """What prepare found and chose."""
        return join(self.root, "plan.json")

    @property
    def tokens(self) -> str:
        """Tokens of this run, unless dataset.cacheUri keeps them by content."""
        return join(self.root, "tokens")

    @property
    def checkpoints(self) -> str:
        """Folder of all checkpoints."""
        return join(self.root, "checkpoints")

    def checkpoint(self, step: int) -> str:
        """Folder of the checkpoint after `step` optimizer steps."""
        return join(self.checkpoints, f"step-{step:06d}")

    @property
    def metrics(self) -> str:
        """Folder of the metrics' parts."""
        return join(self.root, "metrics")

    def metrics_part(self, first_step: int) -> str:
        """Metrics from `first_step` up to the next checkpoint."""
        return join(self.metrics, f"from-{first_step:06d}.jsonl")

    def rank_log(self, attempt: int, rank: int) -> str:
        """End of one rank's log in one attempt."""
        return join(self.logs(attempt), f"rank-{rank:02d}.log")

    def logs(self, attempt: int) -> str:
        """Folder of the ends of all ranks' logs in one attempt."""
        return join(self.root, "attempts", str(attempt), "logs")

    @property
    def adapter(self) -> str:
        """The staged adapter with its checks.json, written by train and read by publish."""
        return join(self.root, "adapter")

    @property
    def checks_file(self) -> str:
        """What train measured and proved."""
        return join(self.adapter, "checks.json")

    @property
    def merged(self) -> str:
        """The staged merged model, when one is asked for."""
        return join(self.root, "merged")

    @property
    def published_file(self) -> str:
        """The pointer that published this run's adapter; it stays when another run's adapter takes its place."""
        return join(self.root, "published.json")


@dataclass(frozen=True)
class OutputLayout:
    """`<output.uri>/`: immutable folders by uid, and current.json, the only object that changes."""

    output_uri: str
    uid: str

    @property
    def pointer(self) -> str:
        """The only object that changes: it names the published folder."""
        return join(self.output_uri, "current.json")

    @property
    def folder(self) -> str:
        """This run's immutable folder."""
        return join(self.output_uri, self.uid)

    @property
    def manifest(self) -> str:
        """Written last but the pointer: with it the folder is complete."""
        return join(self.folder, "manifest.json")


def cache_folder(cache_uri: str, digest: str) -> str:
    """`<cacheUri>/<sha256>/`: tokens kept by content."""
    return join(cache_uri, digest)
