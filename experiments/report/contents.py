"""Builds the report of one or several sweeps: reads, compares and lays out; writes nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report import layout
from experiments.report.contenders import Contender, contenders_of, differing, few_seeds, marked, reference_of
from experiments.report.importance import importance_tables
from experiments.report.layout import Setting, ablated
from experiments.report.runs import SavedRun, SavedSweep, saved_sweeps
from experiments.report.scores import read_scores
from experiments.report.tables import (
    Bars,
    BarSeries,
    Calibration,
    Curve,
    Estimate,
    GallerySource,
    Line,
    Report,
    Table,
)
from experiments.tracking.client import default_tracking_uri
from experiments.tracking.connection import without_password
from refavs.choices import PRIMARY, SCORE
from refavs.data.cues import DIMENSIONS
from refavs.data.splits import Splits
from refavs.metrics import metrics
from refavs.metrics.constant_baselines import MEAN_MASK_BEST
from refavs.metrics.groups import Values

CURVES = ("train/loss", SCORE)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of a report.

    Attributes:
        mixed: whether runs of different stores, and several protocols, may share a table; such rows are marked.
        reference: label of the row that others are compared with; None means `full` or else the first.
        store: location of the features whose pictures are shown; None means the sweep's store.
    """

    protocols: tuple[str, ...] = ("canonical",)
    published: bool = False
    mixed: bool = False
    reference: str | None = None
    store: str | None = None


def build_report(folders: Sequence[Path], options: ReportOptions) -> Report:
    """Reads the sweeps and builds the content of their report.

    Raises:
        ConfigError: a folder is not a sweep, none of its trials is finished, or the reference does not exist.
        StatisticsError: statistics are missing, damaged or without test splits, or runs cannot be compared.
    """
    sweeps = saved_sweeps(folders)
    stores = _store_names(sweeps)
    scores = read_scores([run for sweep in sweeps for run in sweep.runs], options.protocols)
    found = contenders_of(scores, stores)
    reference = reference_of(found, options.reference)
    found = marked(found, reference, options.mixed, stores)
    ordered = (reference, *(one for one in found if one is not reference))
    controls, missing = _controls(sweeps, reference, options.protocols)
    known = _random_stores(sweeps)
    random_features = any(known.get(one.store) for one in ordered)
    setting = Setting(
        contenders=ordered, controls=controls, random_features=random_features,
        published=options.published and reference.splits == Splits.of({}),  # published rows are for Ref-AVS Bench
    )
    first = options.protocols[0]
    return Report(
        title=" + ".join(dict.fromkeys(sweep.grid for sweep in sweeps)),
        facts=_facts(sweeps, ordered, options.protocols),
        warnings=tuple(_warnings(sweeps, ordered, missing, known)),
        random_features=random_features, protocols=options.protocols, reference=reference.label,
        tables=(*_tables(setting, options, _encoders(sweeps)), *importance_tables(sweeps, first)),
        curves=tuple(_curves(ordered)), beta=_beta(ordered, first), ablations=_ablations(ordered, first),
        dimensions=_dimensions(setting, first), categories=_categories(reference, first),
        calibrations=tuple(_calibration(one) for one in ablated(ordered) or (reference,)),
        gallery=_gallery(sweeps, reference, options.store),
    )  # fmt: skip


def _tables(setting: Setting, options: ReportOptions, encoders: Mapping[str, Mapping[str, str]]) -> list[Table]:
    found: list[Table | None] = []
    for protocol in options.protocols:
        found += [layout.main_table(setting, protocol), layout.ablation_table(setting, protocol)]
        found += [layout.difference_table(setting, protocol), layout.interval_table(setting, protocol)]
        found += [layout.part_table(setting, protocol, part) for part in layout.PARTS]
        found += [layout.encoder_table(setting, protocol, encoders), layout.detail_table(setting, protocol)]
    if options.mixed and len(options.protocols) > 1:
        found.append(layout.protocol_table(setting, options.protocols))
    return [table for table in found if table is not None]


def _store_names(sweeps: Sequence[SavedSweep]) -> dict[str, str]:
    """Name of each store by fingerprint: the last part of its location."""
    found = {}
    for known in (store for sweep in sweeps for store in sweep.stores):
        if "store" in known and "fingerprint" in known:
            name = str(known["store"]).rstrip("/").rsplit("/", 1)[-1]
            found[str(known["fingerprint"])] = f"{name} {str(known['fingerprint'])[:8]}"
    return found


def _random_stores(sweeps: Sequence[SavedSweep]) -> dict[str, bool]:
    """Whether an encoder of a store has random weights, by fingerprint; only for stores that a sweep describes."""
    stores = [store for sweep in sweeps for store in sweep.stores]
    told = [facts for facts in stores if {"fingerprint", "random_features"} <= set(facts)]
    return {str(facts["fingerprint"]): bool(facts["random_features"]) for facts in told}


def _encoders(sweeps: Sequence[SavedSweep]) -> dict[str, dict[str, str]]:
    """The encoders that each store uses by default, by its fingerprint and by modality; they come first."""
    found = {}
    for known in (store for sweep in sweeps for store in sweep.stores):
        names: Mapping[str, str] = known.get("encoders", {})
        if names and "fingerprint" in known:
            found[str(known["fingerprint"])] = {
                stream.split("/")[0]: name for stream, name in reversed(list(names.items()))
            }
    return found


def _controls(
    sweeps: Sequence[SavedSweep], reference: Contender, protocols: Sequence[str]
) -> tuple[dict[str, dict[str, Values]], list[str]]:
    """The constant predictions on the reference's store, and the protocols for which they are missing."""
    for sweep in sweeps:
        known: Mapping[str, Any] = sweep.controls
        several = {store["contents"] for store in sweep.facts.get("stores", {}).values()}
        if known.get("store") == reference.store or (known and reference.runs[0].run.contents in several):
            by_protocol: dict[str, dict[str, Values]] = known.get("protocols", {})
            return by_protocol, [protocol for protocol in protocols if protocol not in by_protocol]
    return {}, list(protocols)


def _facts(
    sweeps: Sequence[SavedSweep], contenders: Sequence[Contender], protocols: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    runs = [run.run for one in contenders for run in one.runs]
    facts = [("sweep", ", ".join(str(sweep.folder) for sweep in sweeps))]
    for sweep in sweeps:
        for known in sweep.stores:
            facts += [("store", without_password(str(known["store"])))] if "store" in known else []
            facts += [("fingerprint", str(known["fingerprint"]))] if "fingerprint" in known else []
            if "encoders" in known:
                facts.append(("encoders", ", ".join(f"{stream} {name}" for stream, name in known["encoders"].items())))
        known = sweep.facts
        git = known.get("git") or {}
        if "mlflow.source.git.commit" in git:
            dirty = " with changes" if git.get("mlflow.source.git.dirty") == "true" else ""
            facts.append(("commit", f"{git['mlflow.source.git.commit']}{dirty}"))
        if "run_id" in known:
            address = without_password(str(known.get("tracking_uri") or default_tracking_uri(sweep.folder)))
            facts.append(("MLflow", f"{address}, run {known['run_id']}"))
    splits = contenders[0].splits
    facts += [
        ("protocols", ", ".join(protocols)),
        ("runs", f"{len(runs)} finished of {len(runs) + sum(len(sweep.unfinished) for sweep in sweeps)}"),
        ("seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("expressions", ", ".join(f"{splits.title(split)} {contenders[0].count(split)}" for split in splits.tested)),
        ("compared with", contenders[0].label),
    ]
    return tuple(dict.fromkeys(facts))


def _warnings(
    sweeps: Sequence[SavedSweep], contenders: Sequence[Contender], missing: Sequence[str], random: Mapping[str, bool]
) -> list[str]:
    found = [layout.RANDOM] if any(random.get(one.store) for one in contenders) else []
    if not found and any(one.store not in random for one in contenders):
        found.append("Whether the features have random weights is not known; the refavs-sweep command, run again, "
                     "notes it.")  # fmt: skip
    if missing:
        found.append(f"Constant predictions are missing for {', '.join(missing)}; the refavs-sweep command, run "
                     "again, computes them (its store needs training expressions).")  # fmt: skip
    for name in metrics():
        runs = [run for one in contenders for run in one.runs if "canonical" in run.values]
        without = [run.run.title for run in runs if name not in run.measures("canonical")]
        if without:
            named = f"{', '.join(without[:3])}{', ...' * (len(without) > 3)}"
            found.append(f"{name} is left out for {named}: the statistics lack its counts.")
    for sweep in sweeps:
        if sweep.unfinished:
            shown = ", ".join(f"{title} ({state})" for title, state in list(sweep.unfinished.items())[:5])
            more = f" and {len(sweep.unfinished) - 5} more" if len(sweep.unfinished) > 5 else ""
            found.append(f"Not finished, and left out: {shown}{more}.")
    return [*found, *filter(None, [few_seeds(contenders)])]


def _estimate(contender: Contender, protocol: str, group: str, measure: str = PRIMARY) -> Estimate:
    """Mean and interval in %."""
    found = contender.interval(protocol, group, measure)
    if found is None:
        return Estimate(value=None)
    low, high = (None if bound is None else 100 * bound for bound in (found.low, found.high))
    return Estimate(value=100 * found.mean, low=low, high=high)


def _curves(contenders: Sequence[Contender]) -> list[Curve]:
    found = []
    for measure in CURVES:
        for one in contenders:
            for run in one.runs:
                points = _points(run.run, measure)
                if points:
                    epochs, values = zip(*points, strict=True)
                    found.append(
                        Curve(label=one.label, seed=run.run.seed, measure=measure, epochs=epochs, values=values)
                    )
    return found


def _points(run: SavedRun, measure: str) -> list[tuple[int, float]]:
    return [(record["epoch"], record["metrics"][measure]) for record in run.history
            if math.isfinite(record["metrics"].get(measure, math.nan))]  # fmt: skip


def _beta(contenders: Sequence[Contender], protocol: str) -> tuple[Line, ...]:
    """J against the head's curve setting, e.g. beta, for the most contenders that differ only in it, preferably with
    the reference."""
    families: dict[str, list[Contender]] = {}
    for one in contenders:
        rest = {name: value for name, value in one.config.items() if name != one.curve[0]}
        families.setdefault(repr((sorted(rest.items()), one.kind)), []).append(one)
    family = max(families.values(), key=len)
    setting, words = family[0].curve
    if not setting:
        return ()
    family = sorted(family, key=lambda one: one.config[setting])
    if len(differing(family)) != 1:
        return ()
    found = []
    splits = family[0].splits
    for group in splits.about_objects:
        estimates = tuple(_estimate(one, protocol, group) for one in family)
        if any(estimate.value is not None for estimate in estimates):
            found.append(Line(label=splits.title(group), x=tuple(float(one.config[setting]) for one in family),
                              estimates=estimates, axis=words))  # fmt: skip
    return tuple(found)


def _ablations(contenders: Sequence[Contender], protocol: str) -> Bars | None:
    chosen = ablated(contenders)
    if not chosen:
        return None
    splits = chosen[0].splits
    groups = [group for group, parts in splits.about_objects.items() if all(map(chosen[0].count, parts))]
    if not groups:
        return None
    series = tuple(
        BarSeries(label=one.label, estimates=tuple(_estimate(one, protocol, group) for group in groups))
        for one in chosen
    )
    return Bars(title="Ablations", measure=f"{PRIMARY} (%)", protocol=protocol,
                groups=tuple(map(splits.title, groups)), series=series)  # fmt: skip


def _dimensions(setting: Setting, protocol: str) -> Bars | None:
    """J of the reference, of the rows compared with it in Table 4, and of the best constant prediction."""
    reference = setting.reference
    found = [name.split("/", 1)[1] for name in reference.runs[0].counts if name.startswith("dimension/")]
    groups = (*(name for name in DIMENSIONS if name in found), *sorted(set(found) - set(DIMENSIONS)))
    if len(groups) < 2:
        return None
    series = [
        BarSeries(label=one.label, estimates=tuple(_estimate(one, protocol, f"dimension/{name}") for name in groups))
        for one in ablated(setting.contenders) or (reference,)
    ]
    constant = setting.controls.get(protocol, {}).get(MEAN_MASK_BEST)
    if constant:
        values = [constant.get(f"dimension/{name}", {}).get(PRIMARY, math.nan) for name in groups]
        estimates = tuple(Estimate(value=None if math.isnan(value) else 100 * value) for value in values)
        series.append(BarSeries(label=MEAN_MASK_BEST, estimates=estimates, kind="control"))
    return Bars(
        title=f"{PRIMARY} by dimension", measure=f"{PRIMARY} (%)", protocol=protocol, groups=groups,
        series=tuple(series), counts=tuple(reference.count(f"dimension/{name}") for name in groups),
    )  # fmt: skip


def _categories(reference: Contender, protocol: str) -> Bars | None:
    """J of the reference by the object's category, best first."""
    names = [name.split("/", 1)[1] for name in reference.runs[0].counts if name.startswith("category/")]
    if len(names) < 2:
        return None
    of = {name: _estimate(reference, protocol, f"category/{name}") for name in names}
    groups = tuple(sorted(names, key=lambda name: (-(of[name].value or 0.0), name)))
    series = BarSeries(label=reference.label, estimates=tuple(of[name] for name in groups))
    return Bars(
        title=f"{PRIMARY} by category", measure=f"{PRIMARY} (%)", protocol=protocol, groups=groups, series=(series,),
        counts=tuple(reference.count(f"category/{name}") for name in groups),
    )  # fmt: skip


def _calibration(contender: Contender) -> Calibration:
    peaks = contender.runs[0].peaks
    for run in contender.runs[1:]:
        peaks = peaks + run.peaks
    count = peaks.num_frames.tolist()
    sums, objects = peaks.sum_prob.tolist(), peaks.num_object.tolist()
    return Calibration(
        label=contender.label, edges=tuple(place / len(count) for place in range(len(count) + 1)),
        num_frames=tuple(count),
        mean_prob=tuple(total / n if n else math.nan for total, n in zip(sums, count, strict=True)),
        share_object=tuple(total / n if n else math.nan for total, n in zip(objects, count, strict=True)),
    )  # fmt: skip


def _gallery(sweeps: Sequence[SavedSweep], reference: Contender, given: str | None) -> GallerySource:
    run = reference.runs[0].run
    locations = {str(store.get("fingerprint")): str(store.get("store")) for sweep in sweeps for store in sweep.stores}
    return GallerySource(
        label=reference.label, statistics=run.statistics, checkpoint=run.checkpoint,
        store=given or locations.get(run.store), given=given is not None, fingerprint=run.store,
    )  # fmt: skip
