"""The mean PET of the training list for everybody: what a method must beat to have used the MRI at all."""
from collections.abc import Callable

from torch import Tensor

NAME = "mean_pet"


def predict_mean(mean_pet: Tensor) -> Callable[[dict], Tensor]:
    """A predict function for evaluate. mean_pet: [1, 1, D, H, W]."""
    def predict(batch: dict) -> Tensor:
        """The same PET for every scan of the batch, [B, 1, D, H, W]."""
        return mean_pet.expand_as(batch["pet"])
    return predict
