"""Hugging Face classifiers: tiny ones, built here from a configuration."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from ebjr import JointClassifier, Router, load_model, record  # noqa: E402
from ebjr.backends.entry import entry_of  # noqa: E402
from ebjr.backends.pytorch import TorchModel  # noqa: E402
from ebjr.backends.transformers import TransformersModel  # noqa: E402
from ebjr.errors import ModelError, RecordingNote  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")  # that texts are cut

TEXTS = ["good good film", "bad film", "good", "film " * 50, "unknown words"]


def tiny_bert(seed: int, **own) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = transformers.BertConfig(**size, **own)
    return transformers.BertForSequenceClassification(config)


def text_model(labels: int = 3, problem: str | None = None) -> transformers.PreTrainedModel:
    about = {"num_labels": labels, "problem_type": problem}
    return tiny_bert(0, vocab_size=5, num_hidden_layers=1, max_position_embeddings=8, **about)


def image_model() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        num_labels=2,
        id2label={0: "cat", 1: "dog"},
    )
    return transformers.ViTForImageClassification(config)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "[PAD]": 1, "good": 2, "bad": 3, "film": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", pad_token="[PAD]"
    )


@pytest.fixture(scope="module")
def image_processor():
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 16), (20, 40), (9, 9))]


def test_texts_are_answered_with_the_logits_of_the_model(tokenizer):
    module = text_model()
    model = load_model(module, processor=tokenizer)
    assert isinstance(model, TransformersModel)
    each = [
        module(**tokenizer(text, truncation=True, max_length=8, return_tensors="pt")).logits
        for text in TEXTS
    ]
    expected = torch.cat(each).detach().numpy()
    np.testing.assert_allclose(model(TEXTS), expected, atol=1e-6)
    assert model.labels is None  # LABEL_0 and so on are no names


def test_texts_are_cut_to_the_positions_that_follow_the_paddings(tokenizer):
    config = transformers.RobertaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=18,
        pad_token_id=1,
    )
    model = load_model(transformers.RobertaForSequenceClassification(config), processor=tokenizer)
    assert model.processing["max_length"] == 16
    np.testing.assert_allclose(model(["good " * 50]), model(["good " * 16]), atol=1e-6)


def test_a_tokenizer_and_a_model_without_a_limit_cut_nothing(tokenizer):
    config = transformers.XLNetConfig(
        vocab_size=6, d_model=8, n_layer=1, n_head=1, d_inner=8, num_labels=2
    )
    torch.manual_seed(0)
    module = transformers.XLNetForSequenceClassification(config)
    model = load_model(module, processor=tokenizer)
    assert model.processing == {"padding": True}
    long = "good " * 40 + "bad"
    wanted = module(**tokenizer(long, return_tensors="pt")).logits.detach().numpy()
    np.testing.assert_allclose(model([long]), wanted, atol=1e-5)


def test_a_pipeline_cuts_texts_as_it_was_told(tokenizer):
    told = {"truncation": True, "max_length": 3}
    texts = transformers.pipeline(
        "text-classification", model=text_model(), tokenizer=tokenizer, **told
    )
    model = load_model(texts)
    assert model.processing["max_length"] == 3
    np.testing.assert_allclose(model(["film film bad good"]), model(["film film bad"]), atol=1e-6)
    assert load_model(texts, processing={"max_length": 2}).processing["max_length"] == 2


def test_a_pipeline_of_sigmoids_answers_several_labels(tokenizer):
    texts = transformers.pipeline(
        "text-classification",
        model=text_model(),
        tokenizer=tokenizer,
        function_to_apply="sigmoid",
    )
    model = load_model(texts)
    with pytest.raises(ValueError, match=r"any number of labels.*--task multilabel"):
        JointClassifier(model, model, Router("margin", 0.0))


def test_a_pipeline_brings_its_own_processor(tokenizer, image_processor, images):
    texts = transformers.pipeline("text-classification", model=text_model(), tokenizer=tokenizer)
    looks = transformers.pipeline(
        "image-classification", model=image_model(), image_processor=image_processor
    )
    np.testing.assert_array_equal(
        load_model(texts)(TEXTS), load_model(text_model(), processor=tokenizer)(TEXTS)
    )
    model = load_model(looks)
    from PIL import Image

    said = looks([Image.fromarray(image) for image in images], top_k=None)
    best = [max(answers, key=lambda answer: answer["score"]) for answers in said]
    logits = model(images)
    chance = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [model.labels[k] for k in chance.argmax(axis=1)] == [answer["label"] for answer in best]
    np.testing.assert_allclose(chance.max(axis=1), [answer["score"] for answer in best], rtol=1e-5)


def test_images_of_any_size_or_one_array_are_a_batch(image_processor, images):
    model = load_model(image_model(), processor=image_processor, name="vit")
    assert model(images).shape == (3, 2)
    stacked = np.stack([images[0]] * 3)
    np.testing.assert_array_equal(model(stacked), model(list(stacked)))
    assert model([]).shape == (0, 2)
    assert repr(model) == "TransformersModel(vit)"


def test_any_split_into_chunks_gives_the_same_answers(tokenizer):
    whole = load_model(text_model(), processor=tokenizer)
    parts = load_model(text_model(), processor=tokenizer, batch_size=2)
    np.testing.assert_allclose(whole(TEXTS), parts(TEXTS), atol=1e-6)


def test_two_text_models_become_one(tokenizer):
    student = load_model(text_model(), processor=tokenizer)
    teacher = load_model(text_model(), processor=tokenizer, dtype="bfloat16")
    score = Router("margin", 0.0).score(student(TEXTS))
    joint = JointClassifier(student, teacher, Router("margin", float(np.median(score))))
    answer = joint(TEXTS)
    assert answer.deferred.sum() == 2
    np.testing.assert_allclose(
        answer.output[answer.deferred],
        teacher([text for text, asked in zip(TEXTS, answer.deferred, strict=True) if asked]),
        atol=0.02,
    )


def test_a_model_without_its_processor_is_a_torch_module_of_tensors(tokenizer):
    ids = np.array([[2, 4], [3, 4]])
    model = load_model(text_model())
    assert isinstance(model, TorchModel)
    assert model(ids).shape == (2, 3)


def test_what_is_no_classifier_is_refused(tokenizer):
    pipe = transformers.pipeline("text-classification", model=text_model(), tokenizer=tokenizer)
    pipe.task = "fill-mask"
    with pytest.raises(ModelError, match="must be one of text-classification, image-classi"):
        load_model(pipe)
    with pytest.raises(TypeError, match="needs its tokenizer or image processor as processor="):
        TransformersModel(text_model())
    with pytest.raises(TypeError, match="must be a transformers model or pipeline, not a Lin"):
        load_model(torch.nn.Linear(2, 2), processor=tokenizer)


def test_inputs_that_the_processor_does_not_take_are_one_sentence(tokenizer, image_processor):
    with pytest.raises(ModelError, match=r"processor of .* failed on 1 inputs, the first of type"):
        load_model(text_model(), processor=tokenizer)([3])
    with pytest.raises(ModelError, match="processor of"):
        load_model(image_model(), processor=image_processor)([np.zeros((2, 2, 7, 3, 1))])


def test_a_multilabel_model_answers_label_logits_and_goes_with_its_task_alone(tokenizer):
    module = text_model(problem="multi_label_classification")
    pipe = transformers.pipeline("text-classification", model=module, tokenizer=tokenizer)
    model = load_model(pipe)
    assert model.facts.multilabel is True
    said = pipe(TEXTS, top_k=None, truncation=True, max_length=8)
    shares = [[found["score"] for found in sorted(row, key=lambda f: f["label"])] for row in said]
    np.testing.assert_allclose(1 / (1 + np.exp(-model(TEXTS))), shares, rtol=1e-4)
    teacher = load_model(text_model(), processor=tokenizer)
    assert teacher.facts.multilabel is None
    targets = model(TEXTS) > 0
    outcomes = record(model, teacher, TEXTS, targets, task="multilabel", flops=False)
    assert outcomes.quality("student") == 1.0
    with pytest.raises(ValueError, match=r"the student, Bert.*give .*task='multilabel'\)$"):
        record(model, teacher, TEXTS, [0] * len(TEXTS), flops=False)
    single = load_model(text_model(problem="single_label_classification"), processor=tokenizer)
    with pytest.raises(ValueError, match=r"the teacher, Bert.* returns one label for each input"):
        record(model, single, TEXTS, targets, task="multilabel", flops=False)
    assert load_model(module).facts.multilabel is True


# Pairs, windows, and other tokenizers


LONG = ["good bad film " * 7 + "good", "bad", "film film " * 4, "good " * 20 + "bad"]


@pytest.fixture(scope="module")
def framing():
    """A tokenizer that frames texts and pairs: [CLS] a [SEP], [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "bad", "film", "good")
    ids = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


def pair_model(longest: int = 12) -> transformers.PreTrainedModel:
    about = {"max_position_embeddings": longest, "num_labels": 3, "initializer_range": 0.5}
    return tiny_bert(1, vocab_size=7, num_hidden_layers=2, **about).eval()


def windows_by_hand(module, framing, first: str, second: str | None, longest: int, stride: int):
    """Logits (windows, 3) of a text, or of a pair whose longer text is cut, one at a time."""
    ids = framing.get_vocab()
    one, *other = ([ids[word] for word in text.split()] for text in (first, second) if text)
    cut, kept = (one, other[0] if other else [])
    turned = len(kept) > len(cut)
    cut, kept = (kept, cut) if turned else (cut, kept)
    room = longest - 2 - (len(kept) + 1 if other else 0)
    found = []
    for start in range(0, max(len(cut) - stride, 1), room - stride):
        window = cut[start : start + room]
        a, b = (kept, window) if turned else (window, kept)
        row = [2, *a, 3, *([*b, 3] if other else [])]
        kinds = [0] * (len(a) + 2) + [1] * (len(row) - len(a) - 2)
        with torch.inference_mode():
            said = module(
                input_ids=torch.tensor([row]),
                token_type_ids=torch.tensor([kinds]),
                attention_mask=torch.ones(1, len(row), dtype=torch.long),
            )
        found.append(said.logits[0].numpy())
    return np.stack(found)


def test_rows_of_two_texts_are_pairs(framing):
    module = pair_model()
    model = load_model(module, processor=framing, columns=("premise", "hypothesis"))
    rows = np.array([["good film", "bad"], ["bad", "good film film"]], object)
    with torch.inference_mode():
        wanted = module(**framing(*rows.T.tolist(), padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(model(rows), wanted.numpy(), atol=1e-6)
    np.testing.assert_array_equal(model(rows), model([tuple(row) for row in rows]))
    assert np.abs(model(rows) - model(rows[:, ::-1])).max() > 0.01
    np.testing.assert_array_equal(model(rows[:, :1]), model(rows[:, 0].tolist()))
    assert model.facts.columns == ("premise", "hypothesis")
    assert model.facts.input_shape == (None, 2)
    with pytest.raises(ValueError, match="columns must name one or two texts, not"):
        load_model(module, processor=framing, columns="abc")
    with pytest.raises(ModelError, match="reads one text or a pair of texts in each row, but was"):
        model(np.array([["a", "b", "c"]], object))


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("pairs", [False, True])
def test_a_long_text_is_read_in_windows(how, pairs, framing):
    module = pair_model()
    model = load_model(module, processor=framing, windows=how, stride=2)
    seconds = ["bad film", "good " * 30, "good", "bad bad bad"] if pairs else [None] * 4
    rows = [*zip(LONG, seconds, strict=True)] if pairs else LONG
    answers = model(rows)
    for answer, first, second in zip(answers, LONG, seconds, strict=True):
        each = windows_by_hand(module, framing, first, second, 12, 2)
        wanted = each.mean(axis=0) if how == "mean" else each.max(axis=0)
        np.testing.assert_allclose(answer, wanted, atol=1e-5)
    cut = load_model(module, processor=framing)(rows)
    assert np.abs(cut[0] - answers[0]).max() > 1e-3  # the end of a text counts
    np.testing.assert_allclose(load_model(module, processor=framing)([LONG[1]]), model([LONG[1]]))


def test_windows_answer_alike_in_whatever_batch_a_text_comes(framing):
    module = pair_model()
    whole = load_model(module, processor=framing, windows="mean")
    parts = load_model(module, processor=framing, windows="mean", batch_size=2)
    assert whole.processing["stride"] == 3
    together = whole(LONG * 3)
    np.testing.assert_allclose(parts(LONG * 3), together, atol=1e-5)
    for place, text in enumerate(LONG):
        np.testing.assert_allclose(whole([text])[0], together[place], atol=1e-5)
    assert whole([]).shape == (0, 3)


def test_that_texts_are_cut_is_said_once_and_where_it_was_asked_for_never(framing):
    module = pair_model()
    model = load_model(module, processor=framing)
    full = "good " * 10  # with its frame it is as long as the positions
    quiet = load_model(module, processor=framing, processing={"max_length": 12})
    windows = load_model(module, processor=framing, windows="mean")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model([full, "bad"])
        quiet([full + "bad"])
        windows([full + "bad"])
    assert said == []
    with pytest.warns(RecordingNote, match="reads 12 tokens, and longer texts are cut there: load"):
        model(["bad", full + "bad"])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model([full + "bad"])
    assert said == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": "last"}, "windows must be one of mean, max, not 'last'"),
        ({"windows": "mean", "stride": 10}, r"stride must lie in 0..9 for these windows, not 10"),
        ({"windows": "mean", "stride": -1}, "stride must lie in"),
    ],
)
def test_windows_that_cannot_be_are_one_sentence(options, message, framing):
    with pytest.raises(ValueError, match=message):
        load_model(pair_model(), processor=framing, **options)


def test_windows_need_a_length_room_and_texts(framing, image_processor):
    model = load_model(pair_model(), processor=framing, windows="mean")
    with pytest.raises(ModelError, match="has 9, which leaves no room for windows of the other"):
        model([("good " * 9, "bad " * 9)])
    assert model([("good " * 4, "bad " * 5)]).shape == (1, 3)  # which fits as it is
    with pytest.raises(
        ValueError, match="need a fast tokenizer, which ViTImageProcessorPil is not"
    ):
        load_model(image_model(), processor=image_processor, windows="mean")
    config = transformers.XLNetConfig(
        vocab_size=7, d_model=8, n_layer=1, n_head=1, d_inner=8, num_labels=2
    )
    module = transformers.XLNetForSequenceClassification(config)
    with pytest.raises(
        ValueError, match="windows need a length, which neither the model nor the tokenizer"
    ):
        load_model(module, processor=framing, windows="max")
    told = {"max_length": 8}
    assert load_model(module, processor=framing, windows="max", processing=told)(LONG).shape[0] == 4


def test_student_and_teacher_may_have_any_two_tokenizers(tokenizer, framing):
    student = load_model(text_model(), processor=tokenizer, name="student")
    teacher = load_model(pair_model(), processor=framing, windows="mean", name="teacher")
    found = record(student, teacher, LONG, [0, 1, 2, 0], flops=False, batch_size=3)
    np.testing.assert_allclose(found.student, student(LONG), atol=1e-5)
    np.testing.assert_allclose(found.teacher, teacher(LONG), atol=1e-5)
    joint = JointClassifier(student, teacher, Router("margin", 1e9))
    np.testing.assert_allclose(joint(LONG).output, teacher(LONG), atol=1e-5)


def test_two_models_may_share_a_tokenizer_in_several_threads(framing):
    module = pair_model()
    short = load_model(module, processor=framing, processing={"max_length": 4})
    whole = load_model(module, processor=framing, windows="max")
    joint = JointClassifier(short, whole, Router("margin", 1e9))
    batches = [[text, *LONG] for text in LONG] * 10
    wanted = [whole(batch) for batch in batches[:4]] * 10
    for answer, each in zip(joint.stream(batches, overlap=4), wanted, strict=True):
        np.testing.assert_allclose(answer.output, each, atol=1e-5)


def test_a_model_that_is_told_of_windows_outside_its_module_has_no_path(framing, tmp_path):
    pair_model().save_pretrained(tmp_path / "encoder")
    framing.save_pretrained(tmp_path / "encoder")
    (tmp_path / "encoders.py").write_text(
        "import transformers\n"
        "import ebjr\n"
        f"folder = {str(tmp_path / 'encoder')!r}\n"
        "model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(folder)\n"
        "pipe = transformers.pipeline('text-classification', model=model, tokenizer=tokenizer)\n"
        "inside = ebjr.load_model(pipe, windows='mean')\n"
    )
    outside = load_model(f"{tmp_path}/encoders.py:pipe", windows="mean")
    inside = load_model(f"{tmp_path}/encoders.py:inside")
    np.testing.assert_allclose(outside(LONG), inside(LONG))
    with pytest.raises(TypeError, match=r"joint.toml needs a model's file, address or import path"):
        entry_of(outside)
    again = load_model(entry_of(inside).path)
    np.testing.assert_allclose(again(LONG), inside(LONG))
