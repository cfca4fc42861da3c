"""Made-up tables in the form of ADNI's: no row comes from a real person."""
import numpy as np
import pandas as pd


def amyloid_table(subjects: list[str], seed: int) -> pd.DataFrame:
    """A table like ADNI's of amyloid PET, one to five rows a subject about two years apart, in no order.

    subjects: PTIDs such as 037_S_6046. Of a subject's rows, all have one amyloid status and pass the quality control (qc_flag 2), so that
    also a scan without a date gets its label; status follows the Centiloids, half of the subjects are positive.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i, ptid in enumerate(subjects):
        positive, tracer = i % 2, str(rng.choice(["FBP", "FBB"]))
        first = np.datetime64("2011-01-01") + int(rng.integers(0, 1500))
        for visit in range(int(rng.integers(1, 6))):
            level = int(rng.integers(35, 120) if positive else rng.integers(-15, 10))
            rows.append({"LONIUID": f"I{rng.integers(10 ** 6)}", "RID": int(ptid[-4:]), "PTID": ptid, "VISCODE": "bl" if not visit else
                         f"m{24 * visit}", "SCANDATE": str(first + 730 * visit + int(rng.integers(-40, 40))), "SITEID": int(ptid[:3]) % 60,
                         "qc_flag": 2, "TRACER": tracer, "AMYLOID_STATUS": positive, "CENTILOIDS": level,
                         "SUMMARY_SUVR": round(1 + level / 188, 3)})
    return pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)
