"""SAM 2.1 as segmenter and tracker, against transformers' own way from pictures to masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from extract.annotate.models import Frame, Maps, Track
from extract.annotate.sam2_masks import MAPS, Sam2Masks
from extract.encoders.protocol import EncoderSetup
from extract.encoders.weights import WeightSource
from refavs.errors import WeightsError
from tests.extract.annotate.small_models import TRACKER
from tests.support.small_networks import WRITERS

SIDE = 128
T = 5

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("weights")
    WRITERS[TRACKER](root)
    return root


@pytest.fixture(scope="module")
def tracker(weights: Path) -> Sam2Masks:
    return Sam2Masks(TRACKER, EncoderSetup(weights=WeightSource(folder=weights)))


def frames(height: int = SIDE, width: int = SIDE) -> list[Frame]:
    """A disk that moves over noise."""
    generator = np.random.default_rng(0)
    found = []
    for second in range(T):
        pixels = generator.integers(0, 80, (height, width, 3), dtype=np.uint8)
        pixels[disk(second, height, width)] = 230
        found.append(Frame(clip="a", second=second, pixels=pixels))
    return found


def disk(second: int, height: int = SIDE, width: int = SIDE, x0: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (y - height // 2) ** 2 + (x - x0 - 12 * second) ** 2 < 20**2


class ExactMaps(Maps):
    """The features as the encoder computes them from their pixels, before they are rounded to float16.

    Ours differ from theirs in the last bit, for they are divided by 255 before the mean is subtracted.
    """

    def __init__(self, tracker: Sam2Masks, processor: Any, clip: Sequence[Frame]) -> None:
        self._encoder = tracker.encoder
        self._pixels = processor.init_video_session(video=[frame.pixels for frame in clip]).processed_frames

    @torch.no_grad()
    def of(self, second: int) -> dict[str, np.ndarray]:
        found = self._encoder.features(self._pixels[second][None], ("image", "high_resolution"))
        return {path: found[path][0].numpy() for path in MAPS}


@pytest.fixture(scope="module")
def theirs(weights: Path) -> tuple[Any, Any]:
    """transformers' model and processor, read by transformers."""
    from transformers import Sam2VideoModel
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2_video.processing_sam2_video import Sam2VideoProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    size = {"height": SIDE, "width": SIDE}
    processor = Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), target_size=SIDE)
    return Sam2VideoModel.from_pretrained(weights / TRACKER).eval(), processor


def their_track(
    theirs: tuple[Any, Any], clip: Sequence[Frame], shown: dict[int, dict[int, np.ndarray]], pivot: int
) -> dict[int, Track]:
    """Their order of calls: all objects in one call, the forward of the pivot, both passes."""
    model, processor = theirs
    session = processor.init_video_session(video=[frame.pixels for frame in clip], inference_device="cpu")
    fids = list(shown)
    for number in dict.fromkeys([pivot, *shown[fids[0]]]):
        processor.add_inputs_to_inference_session(
            session, frame_idx=number, obj_ids=list(fids), input_masks=[shown[fid][number] for fid in fids]
        )
        model(session, frame_idx=number)
    masks = np.zeros((len(fids), len(clip), *clip[0].pixels.shape[:2]), bool)
    presence = np.zeros((len(fids), len(clip)), np.float32)
    for reverse in (False, True):
        for out in model.propagate_in_video_iterator(session, start_frame_idx=pivot, reverse=reverse):
            (found,) = processor.post_process_masks([out.pred_masks], [clip[0].pixels.shape[:2]], binarize=True)
            masks[:, out.frame_idx] = found[:, 0].numpy()
            presence[:, out.frame_idx] = torch.sigmoid(out.object_score_logits[:, 0]).numpy()
    return {fid: Track(masks=masks[index], presence=presence[index]) for index, fid in enumerate(fids)}


def same(one: dict[int, Track], other: dict[int, Track]) -> bool:
    return one.keys() == other.keys() and all(
        np.array_equal(one[fid].masks, other[fid].masks) and np.array_equal(one[fid].presence, other[fid].presence)
        for fid in one
    )


def test_tracking_equals_that_of_transformers_bit_by_bit(tracker: Sam2Masks, theirs: tuple[Any, Any]) -> None:
    clip, pivot = frames(), 2
    shown = {1: {pivot: disk(pivot)}, 2: {pivot: disk(pivot, x0=60)}}
    expected = their_track(theirs, clip, shown, pivot)
    found = tracker.track(clip, shown, dict.fromkeys(shown, pivot), ExactMaps(tracker, theirs[1], clip))
    assert same(found, expected)
    assert 0 < expected[1].masks.mean() < 1 and not same({1: expected[1]}, {1: expected[2]})


def test_a_corrected_frame_is_a_further_conditioning_frame(tracker: Sam2Masks, theirs: tuple[Any, Any]) -> None:
    clip, pivot = frames(), 2
    shown = {1: {pivot: disk(pivot), 4: disk(1)}}
    maps = ExactMaps(tracker, theirs[1], clip)
    found = tracker.track(clip, shown, {1: pivot}, maps)
    assert same(found, their_track(theirs, clip, shown, pivot))
    assert not same(found, tracker.track(clip, {1: {pivot: disk(pivot)}}, {1: pivot}, maps))


def test_objects_with_pivots_of_their_own_do_not_influence_each_other(tracker: Sam2Masks) -> None:
    clip = frames()
    shown, pivots = {1: {0: disk(0)}, 2: {4: disk(4), 1: disk(1)}, 3: {0: disk(0, x0=70)}}, {1: 0, 2: 4, 3: 0}
    together = tracker.track(clip, shown, pivots)
    for fid in shown:
        alone = tracker.track(clip, {fid: shown[fid]}, {fid: pivots[fid]})[fid]
        # The memories of objects with the same frames are encoded together, which changes the last bits.
        np.testing.assert_allclose(together[fid].presence, alone.presence, atol=1e-5)
        assert (together[fid].masks == alone.masks).mean() > 0.999


def test_features_computed_earlier_give_the_same_masks_without_the_encoder(
    tracker: Sam2Masks, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = frames(96, 160)
    shown, pivots = {1: {1: disk(1, 96, 160)}, 2: {3: disk(3, 96, 160)}}, {1: 1, 2: 3}
    maps, expected = tracker.maps(clip), tracker.track(clip, shown, pivots)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the encoder was called")

    monkeypatch.setattr("transformers.models.sam2.modeling_sam2.Sam2VisionModel.forward", refuse)
    again = Sam2Masks(TRACKER, EncoderSetup(weights=WeightSource(folder=weights)))
    assert same(again.track(clip, shown, pivots, maps), expected)
    with pytest.raises(AssertionError, match="the encoder was called"):
        again.track(clip, shown, pivots)


def test_candidates_are_the_three_masks_of_transformers_image_model(tracker: Sam2Masks, weights: Path) -> None:
    from transformers import Sam2Model
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2.processing_sam2 import Sam2Processor

    frame, boxes = frames(96, 160)[1], [(20.0, 20.0, 70.0, 70.0), (0.0, 0.0, 160.0, 96.0)]
    size = {"height": SIDE, "width": SIDE}
    processor = Sam2Processor(Sam2ImageProcessor(size=size, mask_size=size), target_size=SIDE)
    model = Sam2Model.from_pretrained(weights / TRACKER).eval()
    inputs = processor(images=Image.fromarray(frame.pixels), input_boxes=[[list(box) for box in boxes]],
                       return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        expected = model(**inputs)
    (masks,) = processor.post_process_masks(expected.pred_masks, inputs["original_sizes"], binarize=True)
    found = tracker.candidates(frame, boxes)
    assert [len(each) for each in found] == [3, 3]
    ours = np.stack([[each.mask for each in own] for own in found])
    assert (ours == masks.numpy()).mean() > 0.99  # Pillow's and torch's interpolation differ by a grey level
    scores = [[each.iou_score for each in own] for own in found]
    np.testing.assert_allclose(scores, rearrange(expected.iou_scores, "1 o m -> o m").numpy(), atol=2e-3)
    assert tracker.candidates(frame, []) == []


def test_a_rehearsal_takes_weights_of_zero(weights: Path) -> None:
    blank = Sam2Masks(TRACKER, EncoderSetup(weights=WeightSource(kind="random", seed=None, folder=weights)))
    told = blank.rehearse(("frame", "object"))
    assert told.keys() == {"frame", "object"} and min(told.values()) > 0
    assert blank.rehearse(("object",)).keys() == {"object"}


def test_missing_weights_are_told_as_by_the_encoder(tmp_path: Path) -> None:
    missing = Sam2Masks(TRACKER, EncoderSetup(weights=WeightSource(folder=tmp_path)))
    with pytest.raises(WeightsError, match=r"--weights-dir .* has none of sam2.1-hiera-tiny/model.safetensors"):
        missing.revision()
    assert missing.weight_parts()
