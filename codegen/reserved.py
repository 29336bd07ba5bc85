"""Reserved: names that programs use themselves, so that names of a spec stay out of their way."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILE = _words("""
    argparse functools json math os platform sys tempfile threading time zlib
    Counter Callable Iterator Mapping Sequence Future
    ThreadPoolExecutor contextmanager nullcontext timedelta accumulate pairwise Path median quantiles Any NamedTuple
    torch dist F Tensor nn annotations safe_open
    LAYER PLANS SCHEDULE VERSION EP TOKENS DTYPE INPUTS WEIGHTS GROUPED IDLE Mark Get Raw Weight
    MOST ALL Symmetric Overflow Slots capturing expect_room expect_one_node this_node
    NUMBERS symm_mem wide power_of_2 wide_columns many_programs
    signal_kernel wait_kernel tell tell_kernel put_rows_to_ranks put_rows_kernel locate locate_kernel
    starts_kernel aim aim_kernel put_copies_to_ranks put_copies_kernel put_back_to_ranks put_back_kernel
    sum_over_copies sum_copies_kernel homes homes_kernel direct_gemm
    direct_product direct_product_kernel direct_product_tiles DIRECT_PRODUCT_TILES
    expand expand_kernel put_sums_to_ranks put_sums_kernel sum_over_ranks sum_ranks_kernel
    Run Lane Step Host Transport nccl_options Part Sizes Layout ByExpert ByToken ByPeer Local
    holder SAME_TOKENS RANKS ETP NODES NODE_RANKS turned Shared own_columns Block Blocks Gathered
    view expect by_tokens length keep router_logits identity rows_or_zero own_weights weighted_sum put_rows sort_rows
    triton tl TensorDescriptor jit columns_at_once TRITON check_triton
    copy_ranks copy_ranks_kernel count_copies_kernel larger ordered value_of place_of
    rank_rows place_rows_kernel token_runs token_runs_kernel
    Tile tile_for plus row_tiles row_tiles_kernel shared ends_at persistent_gemm programs_for
    expert_product expert_product_kernel expert_product_tiles EXPERT_PRODUCT_TILES
    triton_weighted_sum triton_weighted_sum_kernel scatter_rows scatter_rows_kernel
    grouped_mm grouped_gemm dense_gemm batched_gemm expert_of_rows check_grouped opened shape_of
    every_expert fresh weighted reference generator made_up source fill inputs everyone settle check nan_max bench
    trace MEETINGS meet Spans merged flow aligned watch arguments work report main stand_in checked_modules called GIVEN
    """)
"""Names of the file."""

PLAN = _words("name most lanes group world plan plans pick take poison")
"""Attributes besides, of the module and of what runs a plan, where a program has several."""

FORWARD = _words("self tokens part gemm run made")
"""Names of `forward`, besides values."""

REFERENCE = _words("raw get dtype given name expert router")
"""Names of `reference`, besides values."""

MODULE = _words("""
    rank device dtype choices run transport symmetric status capture given choose forward load
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval
    extra_repr float get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia
    named_buffers named_children named_modules named_parameters parameters register_backward_hook register_buffer
    register_forward_hook register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook
    register_load_state_dict_post_hook register_load_state_dict_pre_hook register_module register_parameter
    register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule
    share_memory state_dict to to_empty train training type xpu zero_grad
    """)
"""Attributes of the module: torch's, and the program's own."""
