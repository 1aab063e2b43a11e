"""Names of scikit-learn's checks, for estimators whose input its generator of checks can't make."""

# These only look at parameters and at what stands before `fit`.
CHECKS_BEFORE_FIT = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimators_unfitted",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_set_params",
    "check_valid_tag_types",
]
# For input of one dimension the generator stops after its first check. These are all of scikit-learn's checks except
# those that index columns or rows of a matrix.
CHECKS_IN_ONE_DIMENSION = [
    *CHECKS_BEFORE_FIT,
    "check_complex_data",
    "check_estimator_sparse_matrix",
    "check_estimator_tags_renamed",
    "check_estimators_empty_data_messages",
    "check_fit_non_negative",
    "check_parameters_default_constructible",
]
