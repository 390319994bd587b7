"""CSR-LMCA (Deng et al., The Visual Computer): R2GenCMN with SR-Mamba behind the extractor and LMCA before the encoder.

B studies, V views, P patches, L tokens, D width. The released code departs from its own README and figure; the defaults are
what those mean, QUIRKS what the release does. Source: the behaviour of the released code (CQNU-ZhangLab/CSR-LMCA).
"""

from contextlib import contextmanager

import torch

from models.family import FEATURE_DROPOUT, NOAM, STAGES, TOPK, captioner_settings, family_presets
from models.masks import MASK_FLAGS
from models.r2gencmn import MEM_SIZE, R2GenCMN
from modules.checkpoint import is_ours, load_released
from modules.errors import InputError
from modules.flags import TRAIN, Flag, fraction, not_negative, positive_int
from modules.nets.query_gate import QueryGate, RandomGate
from modules.nets.region_attention import LMCA
from modules.nets.selective_scan import FORMS, chosen_form, kernel
from modules.nets.sr_mamba import SRBranch
from modules.nets.transformer import Attention

# What the released code does, by the flag that brings it back. It also kept weights by the test split's BLEU-4: not offered.
QUIRKS = {
    "views": "enhanced:0,enhanced:0",  # on IU X-Ray; on MIMIC-CXR as ours
    "augment": "crop_flip",
    "sr_output": "vector",
    "sr_scale_learned": False,
    "dt_start": "zero",
    "region_sizes": "flat",
    "crmsa_scope": "batch",
    "lmca_again": "sampling",
    "query_gate": "random",
}
BY_BATCH = {  # what makes a report depend on the batch it is generated in
    (
        "query_gate",
        "random",
    ): "its weights are drawn, and its batch norm mixes studies; cached decoding is not teacher forcing",
    ("crmsa_scope", "batch"): "the regions of all studies of a batch attend to each other",
}

VIEWS = ("complete", "enhanced", "masked")
_GROUP = "csr_lmca"
FLAGS = (
    Flag(_GROUP, "release_quirks", bool, False, "do what the released code does where it departs from its README: sets "
         "--views --augment --sr_output --sr_scale_learned --dt_start --region_sizes --crmsa_scope --lmca_again "
         "--query_gate and marks every table", keep="default"),
    Flag(_GROUP, "views", str, "enhanced:0,masked:0", "views of a study: complete, enhanced (equalised and sharpened) or "
         "masked (SDAM), of image 0, 1 ..", keep="default"),
    Flag(_GROUP, "sdam", bool, True, "mask by SDAM (off: the complete image in place of the masked)", keep="default"),
    Flag(_GROUP, "image_seg_dir", str, None, "folder of masked images <image_seg_dir>/<image path>, as released, instead "
         "of --adm_masks", keep="path"),
    Flag(_GROUP, "sr_mamba", bool, True, "SR-Mamba behind the extractor", keep="shape"),
    Flag(_GROUP, "m_layer", positive_int, 2, "layers of SR-Mamba", keep="shape"),
    Flag(_GROUP, "sr_output", str, "tokens", "what SR-Mamba adds: tokens = a vector per patch, vector = one per view "
         "(released)", keep="shape", choices=("tokens", "vector")),
    Flag(_GROUP, "sr_scale", not_negative, 0.001, "weight of SR-Mamba's output beside the patches; where it starts if "
         "learned", keep="default"),
    Flag(_GROUP, "sr_scale_learned", bool, True, "learn that weight (released: fixed)", keep="shape"),
    Flag(_GROUP, "sr_dropout", fraction, 0.5, "dropout inside SR-Mamba and of the patches it leaves", of=TRAIN,
         keep="default"),
    Flag(_GROUP, "dt_start", str, "mamba", "first steps of the scan: mamba = 0.001 to 0.1, zero = about 0.69 (released)",
         of=TRAIN, keep="default", choices=("mamba", "zero")),
    Flag(_GROUP, "scan", str, "auto", "selective scan: kernel = mamba_ssm's (CUDA), parallel, sequential; auto: the kernel "
         "if installed, else parallel on CUDA, sequential on a CPU", choices=FORMS),
    Flag(_GROUP, "r_msa", bool, True, "attention within regions", keep="shape"),
    Flag(_GROUP, "cr_msa", bool, True, "attention across regions", keep="shape"),
    Flag(_GROUP, "region_sizes", str, "2,4,8", "sides of the regions in patches; flat = the list of all patches in 8 x 8 "
         "regions (released)", keep="shape"),
    Flag(_GROUP, "crmsa_scope", str, "study", "attention across the regions of a study, or of all studies of a batch "
         "(released)", keep="default", choices=("study", "batch")),
    Flag(_GROUP, "lmca_again", str, "no", "LMCA a second time, on the encoder's output, when a report is generated "
         "(released)", keep="default", choices=("no", "sampling")),
    Flag(_GROUP, "query_gate", str, "none", "gate on the queries: none; encoder = a trained one per encoder layer; random = "
         "new random weights at every call (released)", keep="shape", choices=("none", "random", "encoder")),
    Flag(_GROUP, "attention_dropout", fraction, 0.1, "dropout of attention weights, memory and LMCA", of=TRAIN,
         keep="default"),
)  # fmt: skip

_PRESETS = family_presets(
    iu={
        **NOAM, "augment": "crop_aligned", "num_layers": 5, "m_layer": 1, "dropout": 0.35, "lr_ve": 6e-5, "lr_ed": 3e-5,
        "weight_decay": 1e-6, "step_size": 50, "lr_gamma": 0.1, "batch_size": 14, "seed": 20000107, "max_views": 1,
    },
    mimic={
        "num_layers": 3, "m_layer": 2, "dropout": 0.1, "lr_ve": 5e-5, "lr_ed": 7e-4, "weight_decay": 5e-5,
        "lr_schedule": "cosine", "epochs": 80, "seed": 9233, "max_seq_length": 60, "max_gen_length": 60, "threshold": 3,
        "reference_words": 59, "reference_threshold": 3,
    },
    miniature={
        "augment": "crop_aligned", "mem_size": 256, "topk": 16, "dropout": 0.1, "sr_dropout": 0.1, "region_sizes": "2,4",
        "weight_decay": 5e-5, "seed": 42,
    },
)  # fmt: skip


def read_views(text: str) -> tuple[tuple[str, int], ...]:
    """ "enhanced:0,masked:0" -> (("enhanced", 0), ("masked", 0)). InputError for anything else."""
    views = [part.strip().partition(":") for part in text.split(",")]
    for kind, _, number in views:
        if kind not in VIEWS or not number.isdecimal():
            known = ", ".join(f"{name}:0" for name in VIEWS)
            raise InputError(f"--views {text}: write {known} (:1 = the second image), joined by commas")
    return tuple((kind, int(number)) for kind, _, number in views)


def read_sizes(text: str) -> tuple[int, ...]:
    """--region_sizes -> sizes, () for "flat". InputError for anything else."""
    if text == "flat":
        return ()
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"--region_sizes {text}: give sides in patches joined by commas, such as 2,4,8, or flat")
    return tuple(int(size) for size in sizes)


_SR, _LMCA = r"^(?:enhanced_feats\.)?feature_enhancer\.", r"^encoder_decoder\.rrt\."
_PATH = {"": "ordered", "_b": "rearranged"}
OWN_RULES = (
    (r"^enhanced_feats\.visual_extractor\.model\.([014567])\.(.+)$", lambda m: f"extractor.body.{STAGES[m[1]]}.{m[2]}"),
    (r"^encoder_decoder\.memory_matrix$", "memory"),
    (r"^encoder_decoder\.(?:model\.)?cmn\.(.+)$", r"respond.\1"),
    (_SR + r"_fc1\.0\.(.+)$", r"branch.narrow.0.\1"),
    (_SR + r"norm\.(.+)$", r"branch.norm.\1"),
    (_SR + r"layers\.(\d+)\.0\.(.+)$", r"branch.norms.\1.\2"),
    (_SR + r"layers\.(\d+)\.1\.(in_proj|out_proj)\.(.+)$", r"branch.layers.\1.\2.\3"),
    (_SR + r"layers\.(\d+)\.1\.A(_b)?_log$", lambda m: f"branch.layers.{m[1]}.{_PATH[m[2] or '']}.A_log"),
    (_SR + r"layers\.(\d+)\.1\.D(_b)?$", lambda m: f"branch.layers.{m[1]}.{_PATH[m[2] or '']}.D"),
    (
        _SR + r"layers\.(\d+)\.1\.(conv1d|x_proj|dt_proj)(_b)?\.(.+)$",
        lambda m: f"branch.layers.{m[1]}.{_PATH[m[3] or '']}.{m[2].removesuffix('1d')}.{m[4]}",
    ),
    (_SR + r"attention\.([02])\.(.+)$", r"branch.pool.\1.\2"),
    (_SR + r"fc_to_2048\.(.+)$", r"branch.widen.\1"),
    (_LMCA + r"norm\.(.+)$", r"lmca.norm.\1"),
    (_LMCA + r"layers\.0\.norm\.(.+)$", r"lmca.region_norms.0.\1"),
    (_LMCA + r"layers\.0\.attn\.attn\.(qkv|proj)\.(.+)$", r"lmca.regions.0.\1.\2"),
    (_LMCA + r"layers\.0\.attn\.attn\.pe\.(.+)$", r"lmca.regions.0.epeg.\1"),
    (_LMCA + r"cr_msa\.norm\.(.+)$", r"lmca.cross_norm.\1"),
    (_LMCA + r"cr_msa\.attn\.phi$", "lmca.cross.phi"),
    (_LMCA + r"cr_msa\.attn\.attn\.(.+)$", r"lmca.cross.attention.\1"),
    (_SR + r"classifier\..+$", None),  # never used by the release, nor the next
    (r"^linear_[12]\.[01]\..+$", None),
)


class CSRLMCA(R2GenCMN):
    """x' = SR-Mamba of each view's patches; LMCA of all patches and their memory response; else R2GenCMN.

    branch: keywords of SRBranch, None = without SR-Mamba. lmca: keywords of LMCA, None = without. lmca_again: LMCA a second time,
    on the encoder's output, when a report is generated. query_gate: "none", "encoder" (a trained gate in each encoder layer), or
    "random" as released. attention_dropout: of attention weights and memory; gate_seed: what "random" draws from in evaluation.
    shown: for each view the number of its image.
    """

    title = "CSR-LMCA"
    flags = (FEATURE_DROPOUT, MEM_SIZE, TOPK, *MASK_FLAGS, *FLAGS)
    published_flags = {}
    presets = {name: {**preset, "adm_rule": "sdam"} for name, preset in _PRESETS.items()}
    presets["custom"]["augment"] = "crop_aligned"

    def __init__(
        self,
        *,
        branch: dict | None,
        lmca: dict | None,
        lmca_again: bool = False,
        query_gate: str = "none",
        attention_dropout: float = 0.1,
        gate_seed: int = 0,
        shown: tuple[int, ...] = (0, 0),
        width: int,
        **settings,
    ) -> None:
        super().__init__(width=width, **settings)
        self.branch = None if branch is None else SRBranch(self.extractor.width, width, **branch)
        self.lmca = None if lmca is None else LMCA(width, settings["heads"], **lmca)
        self.lmca_again, self.images = lmca_again, max(shown) + 1
        self.register_buffer("shown", torch.tensor(shown), persistent=False)
        attentions = [part for part in self.modules() if isinstance(part, Attention)]
        for attention in attentions:
            attention.dropout = attention_dropout
        self.gate, self.gate_seed = None, gate_seed
        if query_gate == "encoder":
            for layer in self.encoder:
                layer.attention.gate = QueryGate()
        elif query_gate == "random":
            self.gate = RandomGate()
            for layer in (*self.encoder, *self.decoder):
                for attention in layer.modules():
                    if isinstance(attention, Attention):
                        attention.gate = self.gate
        elif query_gate != "none":
            raise ValueError(f"query gate {query_gate}: choose none, random or encoder")

    def view_features(self, images):
        patches = super().view_features(images)
        return patches if self.branch is None else self.branch(patches)

    def read_patches(self, patches, memory, bank):
        patches = super().read_patches(patches, memory, bank)
        return patches if self.lmca is None else self.lmca(patches, memory["outside"])

    def encoded(self, patches, memory, sampling):
        if self.lmca_again and sampling and self.lmca is not None:
            return self.lmca(patches, memory["outside"])
        return patches

    def encode(self, batch, *, sampling: bool = True):
        if self.gate is not None:  # in evaluation what a batch gets does not depend on what was drawn before
            self.gate.draw = None if self.training else torch.Generator().manual_seed(self.gate_seed)
        return super().encode(batch, sampling=sampling)

    def step(self, tokens, memory, cache):
        with self._by_beam():
            return super().step(tokens, memory, cache)

    @contextmanager
    def _by_beam(self):
        if self.gate is None:
            yield
            return
        self.gate.by_beam = True
        try:
            yield
        finally:
            self.gate.by_beam = False

    def parameter_groups(self):
        """SR-Mamba learns at the extractor's rate, as released."""
        groups = super().parameter_groups()
        if self.branch is None:
            return groups
        branch = [p for p in self.branch.parameters() if p.requires_grad]
        own = set(branch)
        return {"extractor": groups["extractor"] + branch, "rest": [p for p in groups["rest"] if p not in own]}

    def attention(self, memory, tokens):
        """Views of one image are added up: [B, L, images, h, w]."""
        looks = super().attention(memory, tokens)
        return looks.new_zeros(*looks.shape[:2], self.images, *looks.shape[3:]).index_add(2, self.shown, looks)

    # -- from flags to the network -----------------------------------------------------------------------------------

    rules = OWN_RULES

    @classmethod
    def settle(cls, values, typed, *, carried) -> None:
        if values["release_quirks"] and ("release_quirks" in typed or not carried):
            mimic = values["dataset_name"] == "mimic_cxr"
            released = {**QUIRKS, **({"views": values["views"]} if mimic else {})}
            values.update({name: value for name, value in released.items() if name not in typed})
        if not values["sdam"]:
            values["views"] = values["views"].replace("masked", "complete")
        images = 1 + max(number for _, number in read_views(values["views"]))
        if "max_views" in typed and values["max_views"] != images:
            raise InputError(
                f"--max_views {values['max_views']}: --views {values['views']} asks for {images}; leave it out"
            )
        values["max_views"] = images
        if values["adm_masks"] is None:
            values["adm_masks"] = f"{values['knowledge_dir']}/sdam_masks"

    @classmethod
    def views(cls, args):
        return read_views(args.views)

    @classmethod
    def inputs(cls, args, *, training):
        masked = any(kind == "masked" for kind, _ in cls.views(args))
        return {"masks"} if masked and args.image_seg_dir is None else set()

    @classmethod
    def check(cls, args, problems, *, training, carried=False) -> None:
        super().check(args, problems, training=training, carried=carried)
        read_sizes(args.region_sizes)
        text = "--scan kernel: pip install mamba-ssm, or leave the flag out"
        problems.check(args.scan != "kernel" or kernel() is not None, text)
        for (name, value), why in BY_BATCH.items():
            if getattr(args, name) == value:
                print(f"note: --{name} {value}: {why}; a report depends on the batch it is generated in")

    @classmethod
    def facts(cls, args, device):
        return {"selective_scan": chosen_form(args.scan, device)} if args.sr_mamba else {}

    @classmethod
    def marks(cls, args):
        preset = {**{flag.name: flag.default for flag in args.known}, **cls.presets.get(args.dataset_name, {})}
        released = [name for name, value in QUIRKS.items() if getattr(args, name) == value != preset[name]]
        if args.release_quirks:
            return ("release quirks",)
        return ("as released: " + ", ".join(released),) if released else ()

    @classmethod
    def build(cls, args, tokenizer, parts=None) -> "CSRLMCA":
        branch = {
            "layers": args.m_layer,
            "output": args.sr_output,
            "scale": args.sr_scale,
            "scale_learned": args.sr_scale_learned,
            "start": args.dt_start,
            "scan": args.scan,
            "dropout": args.sr_dropout,
        }
        lmca = {
            "sizes": read_sizes(args.region_sizes),
            "dropout": args.attention_dropout,
            "scope": args.crmsa_scope,
            "regions": args.r_msa,
            "cross": args.cr_msa,
        }
        return cls(
            mem_size=args.mem_size,
            topk=args.topk,
            branch=branch if args.sr_mamba else None,
            lmca=lmca if args.r_msa or args.cr_msa else None,
            lmca_again=args.lmca_again == "sampling",
            query_gate=args.query_gate,
            attention_dropout=args.attention_dropout,
            gate_seed=args.seed,
            shown=tuple(number for _, number in cls.views(args)),
            **captioner_settings(args, tokenizer),
        )

    def load_start(self, content, source) -> None:
        if is_ours(content):
            super().load_start(content, source)
            return
        state = self.released_state(content.get(self.released_key, content))
        load_released(self, self._own_part(state, source), source, self.sizes)

    def _own_part(self, state: dict, source: str) -> dict:
        """Of the released weights those of the parts that this system has; a learned scale starts where the flag says."""
        if self.lmca is not None and len(self.lmca.regions) > 1:
            raise InputError(f"{source} has one scale of regions; load it with --region_sizes flat (or one size)")
        absent = {
            "branch.": self.branch is None,
            "branch.pool.": self.branch is not None and self.branch.pool is None,
            "lmca.": self.lmca is None,
            "lmca.region": self.lmca is not None and not len(self.lmca.regions),
            "lmca.cross": self.lmca is not None and self.lmca.cross is None,
        }
        gone = tuple(prefix for prefix, missing in absent.items() if missing)
        state = {name: value for name, value in state.items() if not name.startswith(gone)}
        own = {name: value for name, value in self.state_dict().items() if name == "branch.scale" or ".gate." in name}
        return own | state
