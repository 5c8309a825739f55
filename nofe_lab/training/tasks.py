"""What a network is taught: a task gives the loop its loss and figures, and learns on the way.

The loop knows nothing of classes or specialties.  A new way to train experts is a new task; copy
`Distillation`.  The generalist's task, whose classes change their specialties while it trains, is
`nofe_lab.stages.generalist.SpecialtyLearning`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from nofe_lab.config import InvalidInput
from nofe_lab.data import Batch, Source
from nofe_lab.evaluation import Predictions, predict
from nofe_lab.networks import NofE
from nofe_lab.recipes import Recipe
from nofe_lab.runs.checkpoint import IncompatibleCheckpoint


class TrainingDiverged(InvalidInput):
    """The loss or the weights are no longer finite; nothing of the stage is kept."""


def check_finite(recipe: Recipe, what: str, values: Iterable[Tensor]) -> None:
    """Raise TrainingDiverged unless all values are finite."""
    if not torch.stack([tensor.detach().isfinite().all() for tensor in values]).all():
        raise TrainingDiverged(
            f"training has diverged, its {what} are no longer finite: a learning_rate below "
            f"{recipe.learning_rate:g} or a batch_size above {recipe.batch_size} may help."
        )


class Task:
    """Softmax cross-entropy on targets that a subclass chooses, validated on labelled images.

    recipe: how the network is optimised.  val: the images to validate on after each epoch; with
    none there is no validation.
    """

    def __init__(self, recipe: Recipe, val: Source) -> None:
        self.recipe = recipe
        self.val = val

    def targets(self, batch: Batch) -> Tensor:
        """The right output of each image, int64 [B], or probabilities [B, n]."""
        raise NotImplementedError

    def before_step(self, batch: Batch) -> None:
        """Called before the network sees a batch, on several ranks with this rank's part of it."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss to minimise, a scalar; logits: [B, n].

        On several ranks logits, labels and index are those of the whole batch; images and drawn
        are this rank's own.
        """
        return cross_entropy(logits, self.targets(batch))

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Sums over the images of a batch, scalars; called once a step, with detached logits.

        The history shows them as ``train_<name>``, divided by the number of images; the loop adds
        the loss.
        """
        targets = self.targets(batch)
        right = targets if targets.ndim == 1 else targets.argmax(1)
        return {"accuracy": (logits.argmax(1) == right).sum()}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures for the history, measured after each epoch."""
        if not len(self.val):
            return {}
        found = self.predict(model, self.val, self.output_of_class)
        return {"val_loss": found.loss, "val_accuracy": found.accuracy}

    @property
    def output_of_class(self) -> Tensor | None:
        """The output that stands for each class, int64 [C]; None: the class itself."""
        return None

    def predict(
        self, model: nn.Module, split: Source, output_of_class: Tensor | None = None
    ) -> Predictions:
        """Predictions amid training.  Raises TrainingDiverged if they are not finite."""
        found = predict(model, split, output_of_class)
        check_finite(self.recipe, "predictions", [torch.from_numpy(found.logits)])
        return found

    def after_step(self, step: int) -> None:
        """Called when `step` steps are done; at the end of an epoch, after the validation.

        On several ranks it is called on each; what must not differ comes from rank 0 (see
        `nofe_lab.ranks.from_first`).
        """

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, by name: tensors, and what JSON reads as it writes it.

        That is text, numbers, None, lists, and dictionaries with text as keys.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.  Tensors come on the CPU.

        Raises IncompatibleCheckpoint, and changes nothing, if the state is another task's.
        """
        if state:
            raise IncompatibleCheckpoint(f"this task has no {min(state)!r}.")


class Classification(Task):
    """Each image's class: what base CNNs, flat controls and networks of experts learn."""

    def targets(self, batch: Batch) -> Tensor:
        return batch.labels


class Distillation(Task):
    """Another network's answers.

    teacher: its probabilities for each training image [N, n], on the device.
    After G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    def __init__(self, recipe: Recipe, val: Source, teacher: Tensor) -> None:
        super().__init__(recipe, val)
        self.teacher = teacher

    def targets(self, batch: Batch) -> Tensor:
        return self.teacher[batch.index]

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """accuracy is that of the classes, agreement that of the teacher's answers."""
        answers = logits.argmax(1)
        agreement = (answers == self.targets(batch).argmax(1)).sum()
        return {"accuracy": (answers == batch.labels).sum(), "agreement": agreement}


class SparseTraining(Task):
    """Of the experts only an image's own and the gate's best see it; the gate learns beside them.

    The network of experts answers while it trains with its own logits and the gate's, [B, 2 C] (see
    `NofE.sparse`); both learn what `taught` teaches.
    """

    def __init__(self, network: NofE, taught: Task) -> None:
        super().__init__(taught.recipe, taught.val)
        self.network, self.taught = network, taught

    def before_step(self, batch: Batch) -> None:
        self.network.own = self.network.branch_of[batch.labels]

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        experts, gate = logits.chunk(2, dim=1)
        return self.taught.loss(experts, batch) + self.taught.loss(gate, batch)

    def metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        experts, gate = logits.chunk(2, dim=1)
        found = self.taught.metrics(experts, batch)
        return found | {f"gate_{k}": v for k, v in self.taught.metrics(gate, batch).items()}
