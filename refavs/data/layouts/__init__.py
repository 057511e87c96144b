"""Dataset layouts: where the clips, masks, splits and expressions of a folder lie."""

from refavs.data.layouts.protocol import Clip, Layout, Object, Source, expression_table
from refavs.data.layouts.registry import find_clip, read_source

__all__ = ["Clip", "Layout", "Object", "Source", "expression_table", "find_clip", "read_source"]
