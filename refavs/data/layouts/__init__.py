"""Dataset layouts: how to find the clips, masks, splits and expressions in a folder."""

from refavs.data.layouts.protocol import Clip, Layout, Object, Source, expression_table
from refavs.data.layouts.registry import find_clip, read_source

__all__ = ["Clip", "Layout", "Object", "Source", "expression_table", "find_clip", "read_source"]
