"""Names of devices, precisions, stored types, mask rules and layouts, and of the score of trials.

They are separate from the code that uses them, so that showing help or the state of a sweep does not import torch.
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
# Role of a split; `null-test`: test expressions that refer to nothing.
Role = Literal["train", "validation", "test", "null-test"]
PRIMARY = "J"  # the metric that ranks trials, selects checkpoints and appears in figures
VALIDATION = "val"  # in metric names: all validation splits together
SCORE = f"{VALIDATION}/{PRIMARY}"  # the score of an epoch
DEFAULT_VIDEOS = 16  # number of clips of a synthetic benchmark that are also written as videos
LAYOUTS = {
    "ref-avs-bench": "refavs.data.layouts.ref_avs_bench:RefAvsBench",
    "avsbench-s4": "refavs.data.layouts.avsbench:AvsBenchS4",
    "avsbench-ms3": "refavs.data.layouts.avsbench:AvsBenchMs3",
    "avss": "refavs.data.layouts.avss:Avss",
    "omniavs": "refavs.data.layouts.omniavs:OmniAvs",
    "mevis": "refavs.data.layouts.mevis:Mevis",
    "ref-youtube-vos": "refavs.data.layouts.ref_youtube_vos:RefYoutubeVos",
    "videos": "refavs.data.layouts.videos:Videos",
}
