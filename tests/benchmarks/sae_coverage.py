"""How many of the public SAEs that SAELens lists load here, how many say where they belong, and what is refused.

    python tests/benchmarks/sae_coverage.py [--list pretrained_saes.yaml] [--first]

For every SAE of the list a file is synthesised at its place and in the layout that its loader reads
(`tests/listed_saes.py`), and loaded by release and id as a user would. `--first` takes one SAE of each release.
`--list` reads the list out of an installed SAELens and says where the table of this package differs from it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import listed_saes
import make_releases
from transformers.utils.logging import disable_progress_bar

from hf_mote.errors import HFMoTEError
from hf_mote.sae.convert import releases


def say(text: str) -> None:
    """Print a line."""
    print(text)  # noqa: T201


def compare(path: Path) -> None:
    """Print what a list has that the table of the package has not, and the other way round."""
    theirs = make_releases.table(path, "", "")["releases"]
    ours = releases._table()["releases"]
    changed = sorted(name for name in theirs.keys() & ours.keys() if theirs[name] != ours[name])
    say(f"list: {len(theirs)} releases; only there: {sorted(theirs.keys() - ours.keys())}")
    say(f"only in the package: {sorted(ours.keys() - theirs.keys())}; changed: {changed}")


def main() -> None:
    """Load all of them and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path)
    parser.add_argument("--first", action="store_true")
    arguments = parser.parse_args()
    if arguments.list is not None:
        compare(arguments.list)
    disable_progress_bar()
    saes: Counter[str] = Counter()
    whole: dict[str, bool] = {}
    by_loader: dict[str, Counter[str]] = defaultdict(Counter)
    refused: dict[str, list[str]] = defaultdict(list)
    nameless: list[str] = []
    for release in releases.releases():
        whole[release] = True
        for entry in releases.entries(release)[: 1 if arguments.first else None]:
            by_loader[entry.loader]["all"] += 1
            saes["all"] += 1
            folder = Path(tempfile.mkdtemp(prefix="sae-coverage-"))
            try:
                config = listed_saes.load(entry, folder).config
            except HFMoTEError as error:
                whole[release] = False
                reason = str(error).replace(str(folder), "").partition(": ")[2]
                refused[f"{type(error).__name__}: {reason}"].append(f"{release} {entry.known.sae_id}")
                continue
            finally:
                shutil.rmtree(folder)
            saes["loaded"] += 1
            by_loader[entry.loader]["loaded"] += 1
            if config.base_model and config.hookpoint and (config.layer is not None or "embed" in config.hookpoint):
                saes["placed"] += 1
                by_loader[entry.loader]["placed"] += 1
            else:
                nameless.append(f"{release} {entry.known.sae_id}")
    source, date = releases.provenance()
    say(f"{source}, {date}")
    say(f"SAEs loaded: {saes['loaded']:,} of {saes['all']:,} ({saes['loaded'] / saes['all']:.2%})")
    say(f"releases loaded whole: {sum(whole.values())} of {len(whole)} ({sum(whole.values()) / len(whole):.1%})")
    say(f"with base model, hookpoint and layer: {saes['placed']:,} ({saes['placed'] / saes['all']:.2%})")
    say(f"\n{'loader':28}{'SAEs':>8}{'loaded':>8}{'placed':>8}")
    for loader, counts in sorted(by_loader.items(), key=lambda item: -item[1]["all"]):
        say(f"{loader:28}{counts['all']:>8,}{counts['loaded']:>8,}{counts['placed']:>8,}")
    for reason, names in refused.items():
        say(f"\nrefused, {len(names)}: {reason}\n  {', '.join(names[:6])}{' ...' * (len(names) > 6)}")
    if nameless:
        say(f"\nwithout a place, {len(nameless)}: {', '.join(nameless[:12])}")


if __name__ == "__main__":
    main()
