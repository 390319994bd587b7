"""Flags of the systems whose images are masked where a classifier looked (ADM, SDAM)."""

from modules.flags import Flag
from modules.nets.adm import RULES

# fmt: off
MASK_MAKERS = (
    Flag("knowledge", "adm_classifier", str, None, "ADM classifier: ours or the authors' MIMIC_best_weight.pth; put into the "
         "checkpoint so that a new image can be masked [<knowledge_dir>/adm_classifier.pt]", file="adm_classifier.pt"),
    Flag("knowledge", "adm_rule", str, "released", "how a map becomes a mask: released (as EKAGen's masks), cam (map > 0.6), "
         "sdam (CSR-LMCA)", keep="default", choices=RULES),
)
MASK_FLAGS = (
    Flag("knowledge", "adm_masks", str, None, "masks: our packed store or EKAGen's tree of .npy files "
         "[<knowledge_dir>/adm_masks, else <data_dir>/images300_array; csr_lmca: <knowledge_dir>/sdam_masks]", keep="path"),
    *MASK_MAKERS,
)
# fmt: on
