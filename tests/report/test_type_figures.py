"""The figure of a training on distortion types."""

from __future__ import annotations

from iqa_ray.report.type_figures import draw_training


def make_run(seed, confusion):
    history = [
        {
            "epoch": epoch, "loss": 2.0 / epoch, "accuracy": 0.3 * epoch,
            "validation_loss": 2.5 / epoch, "validation_accuracy": 0.2 * epoch + seed / 10,
        }
        for epoch in (1, 2, 3)
    ]  # fmt: skip
    classes = [{"name": name} for name in ("gblur", "refimgs")]
    test = {"confusion": confusion, "classes": classes, "accuracy": 0.75}
    return {"seed": seed, "best_epoch": 2, "history": history, "test": test}


def test_curves_and_confusions_have_the_runs_values(drawn):
    runs = [make_run(0, [[1, 1], [1, 1]]), make_run(4, [[30, 10], [0, 0]])]
    assert draw_training(runs, best=1).startswith(b"\x89PNG")
    accuracy, loss, confusions = drawn[0].axes
    lines = [list(line.get_ydata()) for line in accuracy.lines]
    assert lines[0] == [0.3, 0.6, 0.3 * 3]
    assert lines[3] == [0.2 + 0.4, 0.4 + 0.4, 0.2 * 3 + 0.4]
    assert [list(line.get_ydata()) for line in loss.lines][1] == [2.5, 1.25, 2.5 / 3]
    assert [text.get_text() for text in accuracy.get_legend().texts] == ["training", "validation"]
    assert accuracy.get_title() == "accuracy, 2 seeds"
    assert [text.get_text() for text in confusions.texts] == ["30", "10", "0", "0"]
    assert confusions.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert confusions.get_title() == "test images, seed 4: accuracy 75.0%"
