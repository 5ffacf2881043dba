"""The public functions, one per command: re-exported from `commands/`."""

from selfcluster.commands.attention import attention
from selfcluster.commands.audit import audit
from selfcluster.commands.cluster import cluster
from selfcluster.commands.compare import compare
from selfcluster.commands.demo import demo
from selfcluster.commands.doctor import doctor
from selfcluster.commands.embed import embed
from selfcluster.commands.evaluate import evaluate
from selfcluster.commands.export import export
from selfcluster.commands.figures import figures
from selfcluster.commands.report import report
from selfcluster.commands.sample import sample
from selfcluster.commands.search import search
from selfcluster.commands.sort import sort
from selfcluster.commands.train import train
from selfcluster.commands.verify import verify

__all__ = [
    "attention",
    "audit",
    "cluster",
    "compare",
    "demo",
    "doctor",
    "embed",
    "evaluate",
    "export",
    "figures",
    "report",
    "sample",
    "search",
    "sort",
    "train",
    "verify",
]
