"""Mask2Former's pixel decoder, the second half of the visual encoder; the head can also have one of its own."""

from refavs.model.pixel_decoder import PixelDecoder, PixelDecoderSettings, build_pixel_decoder

__all__ = ["PixelDecoder", "PixelDecoderSettings", "build_pixel_decoder"]
