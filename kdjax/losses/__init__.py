"""Distillation losses: arrays in, one value per example out. Needs only jax.

Losses take `(student_x, teacher_x[, labels])`, then keywords; `where` says which
examples are valid. The transforms at the end change logits or gradients before a loss.
"""

from kdjax.losses._adversarial import (
    dfad_generator_loss,
    dfad_loss,
    zskt_generator_loss,
    zskt_loss,
)
from kdjax.losses._attention import (
    attention_transfer_loss,
    cat_kd_loss,
    class_attention_maps,
    semckd_loss,
)
from kdjax.losses._batch_relations import (
    dist_loss,
    mlkd_loss,
)
from kdjax.losses._boundaries import (
    ab_loss,
    ofd_loss,
    ofd_margins,
)
from kdjax.losses._channels import (
    cwd_loss,
    pkd_loss,
)
from kdjax.losses._contrastive import (
    contrastive_loss,
)
from kdjax.losses._crd import (
    CRDMemory,
    crd_loss,
    init_crd_memory,
    sample_contrast_indices,
    update_crd_memory,
)
from kdjax.losses._data_free import (
    activation_loss,
    batch_norm_statistics_loss,
    image_total_variation,
    information_entropy_loss,
    one_hot_loss,
)
from kdjax.losses._decoupled import (
    dkd_loss,
    nkd_loss,
    uskd_loss,
)
from kdjax.losses._divergences import (
    forward_kl,
    reverse_kl,
    symmetric_kl,
    top_k_kl,
    total_variation,
)
from kdjax.losses._encoders import (
    hidden_cosine_loss,
    patient_loss,
    tinybert_attention_loss,
    tinybert_hidden_loss,
    tinybert_prediction_loss,
)
from kdjax.losses._exits import (
    byot_feature_loss,
    byot_loss,
)
from kdjax.losses._federated import (
    feddf_loss,
    federated_average,
    fedgkd_loss,
    fedmd_consensus,
)
from kdjax.losses._flows import (
    factor_loss,
    fsp_loss,
    fsp_matrix,
    nst_loss,
)
from kdjax.losses._hints import (
    cosine_loss,
    hint_loss,
    mgd_loss,
    mgd_mask,
    vid_loss,
)
from kdjax.losses._labels import (
    cross_entropy,
    hard_target_loss,
    soft_cross_entropy,
    virtual_teacher_loss,
)
from kdjax.losses._linear_divergences import (
    linear_forward_kl,
    linear_reverse_kl,
    linear_symmetric_kl,
    linear_total_variation,
)
from kdjax.losses._linear_mixtures import (
    linear_adaptive_kl,
    linear_jensen_shannon,
    linear_skew_forward_kl,
    linear_skew_reverse_kl,
)
from kdjax.losses._linear_sparse import (
    linear_sparse_soft_target_loss,
    linear_sparse_top_k_kl,
)
from kdjax.losses._linear_targets import (
    linear_cross_entropy,
    linear_soft_target_loss,
    linear_taid_loss,
)
from kdjax.losses._logits import (
    consistency_loss,
    fedmd_loss,
    logit_matching_loss,
    soft_target_loss,
)
from kdjax.losses._mixtures import (
    adaptive_kl,
    jensen_shannon,
    skew_forward_kl,
    skew_reverse_kl,
)
from kdjax.losses._pooling import (
    adaptive_average_pool,
)
from kdjax.losses._relations import (
    correlation_congruence_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    similarity_preserving_loss,
)
from kdjax.losses._relations_of_tokens import (
    minilm_loss,
    minilm_relation_loss,
)
from kdjax.losses._reviews import (
    review_loss,
    srrl_loss,
)
from kdjax.losses._sequences import (
    mft_loss,
    minillm_step_loss,
    uld_loss,
)
from kdjax.losses._sparse import (
    pack_sparse_targets,
    sample_sparse_targets,
    sparse_soft_target_loss,
    unpack_sparse_targets,
)
from kdjax.losses._sparse_top import (
    sparse_top_k_kl,
)
from kdjax.losses._spectral import (
    cka_loss,
    ickd_loss,
    kdsvd_loss,
)
from kdjax.losses._teachers import (
    average_logits,
    average_probs,
    confidence_weights,
    multi_teacher_loss,
    mutual_loss,
)
from kdjax.losses._transforms import (
    permute_non_argmax,
    reverse_gradient,
    standardize_logits,
    taid_loss,
    taid_target,
)
from kdjax.losses._weighted import (
    cwtm_loss,
    ttm_loss,
    wsld_loss,
    wttm_loss,
)

__all__ = [
    "CRDMemory",
    "ab_loss",
    "activation_loss",
    "adaptive_average_pool",
    "adaptive_kl",
    "attention_transfer_loss",
    "average_logits",
    "average_probs",
    "batch_norm_statistics_loss",
    "byot_feature_loss",
    "byot_loss",
    "cat_kd_loss",
    "cka_loss",
    "class_attention_maps",
    "confidence_weights",
    "consistency_loss",
    "contrastive_loss",
    "correlation_congruence_loss",
    "cosine_loss",
    "crd_loss",
    "cross_entropy",
    "cwd_loss",
    "cwtm_loss",
    "dfad_generator_loss",
    "dfad_loss",
    "dist_loss",
    "dkd_loss",
    "factor_loss",
    "feddf_loss",
    "federated_average",
    "fedgkd_loss",
    "fedmd_consensus",
    "fedmd_loss",
    "forward_kl",
    "fsp_loss",
    "fsp_matrix",
    "hard_target_loss",
    "hidden_cosine_loss",
    "hint_loss",
    "ickd_loss",
    "image_total_variation",
    "information_entropy_loss",
    "init_crd_memory",
    "jensen_shannon",
    "kdsvd_loss",
    "linear_adaptive_kl",
    "linear_cross_entropy",
    "linear_forward_kl",
    "linear_jensen_shannon",
    "linear_reverse_kl",
    "linear_skew_forward_kl",
    "linear_skew_reverse_kl",
    "linear_soft_target_loss",
    "linear_sparse_soft_target_loss",
    "linear_sparse_top_k_kl",
    "linear_symmetric_kl",
    "linear_taid_loss",
    "linear_total_variation",
    "logit_matching_loss",
    "mft_loss",
    "mgd_loss",
    "mgd_mask",
    "minillm_step_loss",
    "minilm_loss",
    "minilm_relation_loss",
    "mlkd_loss",
    "multi_teacher_loss",
    "mutual_loss",
    "nkd_loss",
    "nst_loss",
    "ofd_loss",
    "ofd_margins",
    "one_hot_loss",
    "pack_sparse_targets",
    "patient_loss",
    "permute_non_argmax",
    "pkd_loss",
    "pkt_loss",
    "reverse_gradient",
    "reverse_kl",
    "review_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sample_contrast_indices",
    "sample_sparse_targets",
    "semckd_loss",
    "similarity_preserving_loss",
    "skew_forward_kl",
    "skew_reverse_kl",
    "soft_cross_entropy",
    "soft_target_loss",
    "sparse_soft_target_loss",
    "sparse_top_k_kl",
    "srrl_loss",
    "standardize_logits",
    "symmetric_kl",
    "taid_loss",
    "taid_target",
    "tinybert_attention_loss",
    "tinybert_hidden_loss",
    "tinybert_prediction_loss",
    "top_k_kl",
    "total_variation",
    "ttm_loss",
    "uld_loss",
    "unpack_sparse_targets",
    "update_crd_memory",
    "uskd_loss",
    "vid_loss",
    "virtual_teacher_loss",
    "wsld_loss",
    "wttm_loss",
    "zskt_generator_loss",
    "zskt_loss",
]
