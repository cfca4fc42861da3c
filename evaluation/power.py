"""What a number of test subjects can show: how wide the interval of an AUC will be."""
from evaluation.statistics import auc_half_width

AUCS = (0.6, 0.7, 0.8, 0.9)


def expected_widths(positives: int, negatives: int) -> str:
    """The expected 95 % interval of a few AUCs with so many subjects of each label, in a line."""
    subjects = f"{positives} positive and {negatives} negative test subjects"
    if not positives or not negatives:
        return f"{subjects} have no AUC: it needs both labels"
    widths = ", ".join(f"{auc:.1f} ± {auc_half_width(auc, positives, negatives):.2f}" for auc in AUCS)
    return f"with {subjects} the 95 % interval of an AUC is expected to be {widths} (Hanley and McNeil 1982)"
