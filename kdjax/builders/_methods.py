"""The methods that a config can name under `distill.terms`, and what each is fed."""

from collections.abc import Mapping

from kdjax import losses
from kdjax.builders import _modules as modules
from kdjax.builders import _readers as read
from kdjax.builders._readers import each_layer
from kdjax.builders._terms import Method

STAGES, PREACT = "stage[1234]", "stage?_preact"
HIDDEN, RELATIONS = "block*[0-9]", "block*_queries,block*_keys,block*_values"
BIASES = {"student_bias": read.student_bias, "teacher_bias": read.teacher_bias}
STUDENT_BIAS = {"student_bias": read.student_bias}

# Losses of logits, in the order of their names.
_OF_LOGITS: Mapping[str, Method] = {
    "adaptive_kl": Method(losses.adaptive_kl, read.logits),
    "consistency": Method(losses.consistency_loss, read.logits),
    "cross_entropy": Method(losses.cross_entropy, read.own_logits_and_labels),
    "ctkd": Method(
        losses.soft_target_loss,
        read.logits,
        modules=modules.learn_temperature,
        keywords={"temperature": lambda seen: seen.adapted("temperature")},
    ),
    "cwtm": Method(losses.cwtm_loss, read.logits_and_labels),
    "dfad": Method(losses.dfad_loss, read.logits),
    "dist": Method(losses.dist_loss, read.logits),
    "dkd": Method(losses.dkd_loss, read.logits_and_labels),
    "dkpp": Method(
        losses.soft_target_loss,
        read.logits_and_made("permuted"),
        modules=modules.permute,
    ),
    "feddf": Method(losses.feddf_loss, read.logits_and_group),
    "fedgkd": Method(losses.fedgkd_loss, read.logits_and_group),
    "fedmd": Method(losses.fedmd_loss, read.logits),
    "forward_kl": Method(losses.forward_kl, read.logits),
    "hard_target": Method(losses.hard_target_loss, read.logits),
    "jensen_shannon": Method(losses.jensen_shannon, read.logits),
    "logit_matching": Method(losses.logit_matching_loss, read.logits),
    "mft": Method(losses.mft_loss, read.logits_and_labels),
    "minillm_step": Method(losses.minillm_step_loss, read.logits_and_labels),
    "mlkd": Method(losses.mlkd_loss, read.logits),
    "multi_teacher": Method(losses.multi_teacher_loss, read.logits_and_group),
    "mutual": Method(losses.mutual_loss, read.logits_and_group),
    "nkd": Method(losses.nkd_loss, read.logits_and_labels),
    "reverse_kl": Method(losses.reverse_kl, read.logits),
    "skew_forward_kl": Method(losses.skew_forward_kl, read.logits),
    "skew_reverse_kl": Method(losses.skew_reverse_kl, read.logits),
    "soft_target": Method(losses.soft_target_loss, read.logits),
    "sparse_soft_target": Method(
        losses.sparse_soft_target_loss,
        read.logits_and_made("sampled"),
        modules=modules.sample,
    ),
    "sparse_top_k_kl": Method(losses.sparse_top_k_kl, read.logits_and_top),
    "symmetric_kl": Method(losses.symmetric_kl, read.logits),
    "taid": Method(losses.taid_loss, read.logits),
    "tinybert_prediction": Method(losses.tinybert_prediction_loss, read.logits),
    "top_k_kl": Method(losses.top_k_kl, read.logits),
    "total_variation": Method(losses.total_variation, read.logits),
    "ttm": Method(losses.ttm_loss, read.logits),
    "uld": Method(losses.uld_loss, read.logits),
    "virtual_teacher": Method(losses.virtual_teacher_loss, read.own_logits_and_labels),
    "wsld": Method(losses.wsld_loss, read.logits_and_labels),
    "wttm": Method(losses.wttm_loss, read.logits),
}

# Losses of features and of how examples relate.
_OF_FEATURES: Mapping[str, Method] = {
    "ab": Method(
        losses.ab_loss, read.adapted_pairs, PREACT, each_layer(modules.connect)
    ),
    "attention_transfer": Method(losses.attention_transfer_loss, read.pairs, STAGES),
    "byot": Method(
        losses.byot_loss,
        read.exit_logits,
        STAGES,
        modules.exits,
        beside=read.exit_labels,
    ),
    "byot_feature": Method(
        losses.byot_feature_loss, read.exit_features, STAGES, modules.exits
    ),
    "cat_kd": Method(losses.cat_kd_loss, read.class_maps, "stage3"),
    "cka": Method(losses.cka_loss, read.pairs, "pooled"),
    "contrastive": Method(
        losses.contrastive_loss,
        read.adapted_pairs,
        "pooled",
        each_layer(modules.embed),
    ),
    "correlation_congruence": Method(
        losses.correlation_congruence_loss,
        read.adapted_pairs,
        "pooled",
        each_layer(modules.embed),
    ),
    "cosine": Method(
        losses.cosine_loss, read.adapted_pairs, "pooled", each_layer(modules.embed)
    ),
    "crd": Method(
        losses.crd_loss,
        read.made("memory"),
        "pooled",
        modules.remember,
        # That of the memory's normalisers.
        keywords={"temperature": lambda seen: 0.07},
    ),
    "cwd": Method(
        losses.cwd_loss, read.adapted_pairs, "stage3", each_layer(modules.connect)
    ),
    "factor": Method(
        losses.factor_loss,
        read.factors,
        "stage3",
        modules.paraphrase,
        beside=read.reconstruction,
    ),
    "fsp": Method(losses.fsp_loss, read.flows, STAGES),
    "hint": Method(
        losses.hint_loss, read.adapted_pairs, "stage2", each_layer(modules.hint)
    ),
    "ickd": Method(
        losses.ickd_loss, read.adapted_pairs, "stage3", each_layer(modules.connect)
    ),
    "kdsvd": Method(losses.kdsvd_loss, read.stages, STAGES),
    "mgd": Method(
        losses.mgd_loss, read.adapted_pairs, "stage3", each_layer(modules.generate)
    ),
    "nst": Method(losses.nst_loss, read.pairs, "stage3"),
    "ofd": Method(losses.ofd_loss, read.margins, PREACT, each_layer(modules.connect)),
    "pkd": Method(
        losses.pkd_loss, read.adapted_pairs, "stage3", each_layer(modules.connect)
    ),
    "pkt": Method(losses.pkt_loss, read.pairs, "pooled"),
    "review": Method(losses.review_loss, read.fused_pairs, STAGES, modules.fuse),
    "rkd_angle": Method(losses.rkd_angle_loss, read.pairs, "pooled"),
    "rkd_distance": Method(losses.rkd_distance_loss, read.pairs, "pooled"),
    "semckd": Method(
        losses.semckd_loss, read.made("attention"), STAGES, modules.attend
    ),
    "similarity_preserving": Method(
        losses.similarity_preserving_loss, read.pairs, "stage3"
    ),
    "simkd": Method(
        losses.hint_loss, read.adapted_pairs, "stage3", each_layer(modules.project)
    ),
    "srrl": Method(
        losses.srrl_loss,
        read.regressions,
        "stage3",
        each_layer(modules.connect_active),
    ),
    "uskd": Method(losses.uskd_loss, read.weak_logits, "stage2", modules.exits),
    "vid": Method(
        losses.vid_loss, read.predictions, STAGES, each_layer(modules.predict)
    ),
    "zskt": Method(losses.zskt_loss, read.logits_and_stages, STAGES),
}

# Losses of encoders: of a vision transformer's tokens, from a config.
_OF_ENCODERS: Mapping[str, Method] = {
    "hidden_cosine": Method(
        losses.hidden_cosine_loss,
        read.adapted_pairs,
        HIDDEN,
        each_layer(modules.per_token),
        tokens=True,
    ),
    "minilm": Method(losses.minilm_loss, read.relations, RELATIONS, tokens=True),
    "minilm_relation": Method(
        losses.minilm_relation_loss, read.relations, RELATIONS, tokens=True
    ),
    "patient": Method(
        losses.patient_loss, read.adapted_pairs, "pooled", each_layer(modules.per_token)
    ),
    "tinybert_attention": Method(
        losses.tinybert_attention_loss, read.pairs, "block*_scores", tokens=True
    ),
    "tinybert_hidden": Method(
        losses.tinybert_hidden_loss,
        read.adapted_pairs,
        HIDDEN,
        each_layer(modules.per_token),
        tokens=True,
    ),
}

# Losses that make the logits themselves, in chunks.
_OF_HIDDEN_STATES: Mapping[str, Method] = {
    **{
        fn.__name__: Method(fn, read.hidden_states, "pooled", keywords=BIASES)
        for fn in (
            losses.linear_adaptive_kl,
            losses.linear_forward_kl,
            losses.linear_jensen_shannon,
            losses.linear_reverse_kl,
            losses.linear_skew_forward_kl,
            losses.linear_skew_reverse_kl,
            losses.linear_symmetric_kl,
            losses.linear_total_variation,
        )
    },
    "linear_cross_entropy": Method(
        losses.linear_cross_entropy,
        read.hidden_states_and(read.own_logits_and_labels),
        "pooled",
        keywords=STUDENT_BIAS,
    ),
    "linear_soft_target": Method(
        losses.linear_soft_target_loss, read.hidden_states, "pooled", keywords=BIASES
    ),
    "linear_sparse_soft_target": Method(
        losses.linear_sparse_soft_target_loss,
        read.hidden_states_and(read.logits_and_made("sampled")),
        "pooled",
        modules.sample,
        keywords=STUDENT_BIAS,
    ),
    "linear_sparse_top_k_kl": Method(
        losses.linear_sparse_top_k_kl,
        read.hidden_states_and(read.logits_and_top),
        "pooled",
        keywords=STUDENT_BIAS,
    ),
    "linear_taid": Method(
        losses.linear_taid_loss, read.hidden_states, "pooled", keywords=BIASES
    ),
}

LOSSES: Mapping[str, Method] = {
    **_OF_LOGITS,
    **_OF_FEATURES,
    **_OF_ENCODERS,
    **_OF_HIDDEN_STATES,
}
"""By name; those of several layers are added over the layers."""
