"""The rows of the study of repairs: what each changes, and of which other row (docs/study.md)."""
from typing import NamedTuple


class Row(NamedTuple):
    """A row of the study.

    change: the settings that differ from those of the row `of`; without `of`, from those of the preset.
    source: whose idea it is, or that it is a control or an ablation.
    trains: what it trains itself, 'aae' both stages, 'ldm' the second, 'nothing' where it samples the
    networks of the row `of` in another way.
    always: run with every seed; other rows with the first, unless they are named.
    """
    name: str
    change: str
    source: str = ""
    trains: str = "ldm"
    of: str = "default"
    always: bool = False


ROWS = (
    Row("default", "", trains="aae", of="", always=True),
    Row("published", "--preset benchmark published --sampler ddim --sampling_steps 50", "Ou et al. 2025",
        "aae", ""),
    Row("fallback", "--label_in_training true --label_at_sampling mixed", "default without regions"),
    # null controls
    Row("shuffled", "--shuffle_labels", "control", always=True),
    Row("link_0", "--phantom_link 0", "control", "aae", "", always=True),
    Row("link_0_shuffled", "--shuffle_labels", "control", of="link_0", always=True),
    # the loss
    Row("no_image_loss", "--image_loss 0", "Ou et al. 2025"),
    Row("eps", "--prediction eps --validation_steps 20 --sampling_steps 20", "Ho et al. 2020"),
    Row("even_times", "--time_shift 1", "Ou et al. 2025"),
    # the MRI and the label
    Row("one_channel", "--conditioning input", "Ou et al. 2025"),
    Row("no_mri", "--conditioning none", "ablation"),
    Row("no_label", "--label_in_training none", "ablation"),
    Row("mixed", "--label_at_sampling mixed", "", "nothing"),
    Row("true_none", "--label_at_sampling none", "Ou et al. 2025", "nothing", "fallback"),
    # the latents
    Row("unscaled", "--latent_scaling false", "Ou et al. 2025"),
    Row("latents_1", "--latent_channels 1", "Ou et al. 2025", "aae"),
    Row("output_norm", "--aae_norms output", "Ou et al. 2025", "aae"),
    Row("block_norm", "--aae_norms blocks", "Ou et al. 2025", "aae"),
    Row("aae_constant_rate", "--aae_lr_decay false", "Ou et al. 2025", "aae"),
    # sampling
    Row("samples_1", "--samples_per_scan 1", "", "nothing"),
    Row("samples_16", "--samples_per_scan 16", "", "nothing"),
    Row("steps_1", "--sampling_steps 1", "", "nothing"),
    Row("steps_5", "--sampling_steps 5", "", "nothing"),
    Row("steps_20", "--sampling_steps 20", "", "nothing"),
)
BY_NAME = {row.name: row for row in ROWS}


def change_of(row: Row) -> list[str]:
    """The settings that differ from those of the preset, as words of a command line."""
    before = change_of(BY_NAME[row.of]) if row.of else []
    return before + row.change.split()
