"""What refavs-extract offers by name, kept apart from the encoders so that a help text needs no torch."""

PRESETS = {
    "base": "the paper's, Swin-B 384 with Mask2Former's pixel decoder",
    "imagenet": "the same without a pixel decoder, Swin-B with the weights of ImageNet",
    "released": "base with the text encoder of the paper's public release",
    "tiny": "small networks for demonstrations",
}
LEVELS = ("backbone", "pixel_decoder")
