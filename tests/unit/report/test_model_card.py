"""The model card of an export: true figures, and no text that is markup."""

import re

from hypothesis import given
from hypothesis import strategies as st

from rayssl.pipeline.report.model_card import _text, model_card

ENCODER = {
    "name": "resnet-tiny",
    "channels": 3,
    "image_size": 32,
    "dim": 128,
    "licence": "teacher X (Y): BSD",
    "extra": {"method": "simclr"},
}
DATA = {"name": "photos", "train": 2000, "val": 0, "test": 100}
HOW = {"title": "photos, as onnx", "code": "import onnxruntime\n", "files": ["encoder.onnx"], "difference": 1.5e-6}


def record(metric: str, value: float, protocol: str = "measured") -> dict[str, object]:
    return {"metric": metric, "value": value, "protocol": protocol, "interval": [value - 0.1, value + 0.1]}


def test_it_says_what_it_is_and_how_good() -> None:
    records = [
        record("knn/top1", 0.5, "k = 20"),
        record("baseline/raw-pixels/knn/top1", 0.25),
        record("search/knn/top1", 0.75),  # of other vectors than the encoder's
        record("finetune@10%/top1", 0.625),  # of another encoder
    ]
    text = model_card(ENCODER, DATA, records, HOW)
    for line in (
        "from images (B, 3, 32, 32) in [0, 1] to features (B, 128)",
        "- trained by: simclr",
        "- images: photos: 2,000 for training, 100 for testing",
        "- licence: teacher X (Y): BSD",
        "- files: `encoder.onnx`",
        "at most 1.5e-06",
        "```python\nimport onnxruntime\n```",
        "| knn/top1 | 0.5 | 0.4 … 0.6 |  | 0.25 | k = 20 |",
    ):
        assert line in text
    assert "0.75" not in text
    assert "0.625" not in text
    assert "has not been evaluated" in model_card(ENCODER, DATA, [], HOW)
    assert "the weights are as they came" in model_card({**ENCODER, "extra": {}}, DATA, [], HOW)


@given(st.text(max_size=40))
def test_a_name_is_one_line_without_markup(name: str) -> None:
    text = _text(name)
    assert not re.search(r"[<>\x00-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]|#~]", text)
