"""Names of devices, precisions, stored types, mask rules, layouts and of the score of trials.

They are apart from what computes with them, so that a help, or a look at a sweep, needs no torch.
"""

from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
StoredType = Literal["float16", "int8", "float8"]  # of the features in a store
STORED_TYPES: tuple[StoredType, ...] = get_args(StoredType)
MaskRule = Literal["auto", "nonzero", "alpha", "index"]
MASK_RULES: tuple[MaskRule, ...] = get_args(MaskRule)
# What a split of expressions is for; `null-test`: test expressions that refer to nothing.
Role = Literal["train", "validation", "test", "null-test"]
PRIMARY = "J"  # the metric by which trials are ranked and kept, and which figures show
VALIDATION = "val"  # the splits of validation together, in names of metrics
SCORE = f"{VALIDATION}/{PRIMARY}"  # of an epoch
DEFAULT_VIDEOS = 16  # clips of a synthetic benchmark that are films as well
LAYOUTS = {
    "ref-avs-bench": "refavs.data.layouts.ref_avs_bench:RefAvsBench",
    "videos": "refavs.data.layouts.videos:Videos",
}
