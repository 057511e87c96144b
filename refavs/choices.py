"""Names of devices, precisions and mask rules, apart from what computes with them, so that a help needs no torch."""

from typing import Literal, get_args

Device = Literal["auto", "cpu", "cuda"]
DEVICES: tuple[Device, ...] = get_args(Device)
Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MaskRule = Literal["auto", "nonzero", "alpha", "index"]
MASK_RULES: tuple[MaskRule, ...] = get_args(MaskRule)
# What a split of expressions is for; `null-test`: test expressions that refer to nothing.
Role = Literal["train", "validation", "test", "null-test"]
LAYOUTS = {
    "ref-avs-bench": "refavs.data.layouts.ref_avs_bench:RefAvsBench",
    "videos": "refavs.data.layouts.videos:Videos",
}
