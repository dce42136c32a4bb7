"""Every sentence of docs/security.md is mapped to the tests that check it."""

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "security.md"

ADVICE: tuple[str, ...] = ()
"""For a sentence that gives advice, describes other software, or describes the page itself."""

CLAIMS = {
    "You may receive a data set": (
        "hostile_files:test_a_data_set_runs_nothing",
        "hostile_files:test_a_checkpoint_runs_nothing",
    ),
    "This page explains how": ADVICE,
    "One kind of code runs": (
        "house:test_modules_that_can_run_code_are_only_imported_in_known_places",
        "house:test_functions_that_can_run_code_are_only_called_in_known_places",
    ),
    "It runs with all your permissions": (
        "stages_sensing_build:test_a_factory_gets_the_number_of_classes_if_it_has_the_parameter",
    ),
    "It runs only if you name it": (
        "hostile_files:test_a_model_of_someone_elses_runs_no_code_that_the_user_has_not_named",
        "stages_sensing_trust:test_what_the_user_has_named_may_be_named_by_files",
    ),
    "Files name networks too": (
        "hostile_files:test_a_model_of_someone_elses_runs_no_code_that_the_user_has_not_named",
        "hostile_files:test_a_recipe_runs_no_code_that_the_user_has_not_named",
        "hostile_stores:test_a_replayed_command_runs_no_code_that_the_user_has_not_named",
    ),
    "What a file names runs only": (
        "stages_sensing_trust:test_other_code_may_not_be_named_by_files",
        "stages_sensing_trust:test_a_module_is_known_by_its_file",
        "stages_sensing_trust:test_edited_code_must_be_named_again",
    ),
    "The hash does not cover": ADVICE,
    "The list is created with mode": (
        "stages_sensing_trust:test_the_list_is_private_whatever_the_umask",
    ),
    "It is ignored if other users": (
        "stages_sensing_trust:test_a_list_that_others_can_write_is_ignored",
        "stages_sensing_trust:test_a_list_of_another_user_is_ignored",
    ),
    "Everything else is only data": ADVICE,
    "Weights are safetensors": (
        "hostile_files:test_a_checkpoint_runs_nothing",
        "hostile_files:test_safetensors_with_a_bad_header_are_refused",
        "house:test_functions_that_can_run_code_are_called_safely",
    ),
    "An index of sharded weights": (
        "stages_sensing_checkpoint:test_index_that_names_a_file_elsewhere_is_refused",
    ),
    "Arrays are read with": (
        "hostile_files:test_a_data_set_runs_nothing",
        "house:test_functions_that_can_run_code_are_called_safely",
    ),
    "The only pickles that are opened": (
        "hostile_files:test_a_published_pickle_that_is_another_is_not_opened",
        "hostile_files:test_a_batch_with_the_right_sum_builds_arrays_and_nothing_else",
    ),
    "The names of networks of torchvision": (
        "stages_sensing_timm_networks:test_its_code_is_that_of_an_installed_library",
        "stages_sensing_torchvision_networks:test_unknown_setting_is_refused",
    ),
    "Code in a repository": (
        "stages_sensing_hf_networks:test_code_in_a_folder_is_not_run",
        "stages_sensing_timm_networks:test_what_timm_does_not_have_is_refused",
    ),
    "The JSON files of an": (
        "stages_sensing_hf_config:test_settings_that_run_code_or_read_other_files_are_refused",
    ),
    "Networks are downloaded only": (
        "stages_sensing_pretrained:test_without_cache_and_connection_the_ways_out_are_named",
    ),
    "The card of a model may name": ADVICE,
    "The types and shapes of stored arrays": (
        "hostile_files:test_array_metadata_is_never_obeyed",
        "hostile_files:test_an_invalid_plan_that_matches_its_folder_is_damaged",
    ),
    "A `zarr.json` is for other programs": ("hostile_files:test_array_metadata_is_never_obeyed",),
    "Samples must have the columns": (
        "hostile_files:test_samples_of_another_form_are_damage",
        "hostile_files:test_pandas_metadata_of_samples_is_ignored",
    ),
    "In tables of results it only chooses": (
        "store_tables:test_a_frame_keeps_the_types_that_pandas_wrote",
        "store_tables:test_damaged_metadata_for_pandas_is_reported_as_damage",
        "store_tables:test_metadata_for_pandas_that_is_not_json_is_reported_as_damage",
    ),
    "A manifest may name files": (
        "stages_data_manifest:test_a_file_elsewhere_is_only_decoded_as_an_image",
    ),
    "Tar archives are never extracted": (
        "stages_data_tar_images:test_nothing_is_extracted_whatever_the_names_of_members",
        "house:test_modules_that_can_run_code_are_only_imported_in_known_places",
    ),
    "From MATLAB files with lists or weights": (
        "stages_quality_unique:test_another_matlab_file_is_refused",
    ),
    "Recipes are plain YAML": ("hostile_files:test_a_recipe_is_no_program",),
    "A recipe cannot choose where": (
        "hostile_files:test_a_recipe_says_neither_where_it_runs_nor_where_else_it_writes",
    ),
    "Reports escape every name": (
        "stages_report_report:test_hostile_names_are_text",
        "stages_report_report:test_names_of_corruptions_are_text",
    ),
    "A test lists every module": (
        "house:test_modules_that_can_run_code_are_only_imported_in_known_places",
    ),
    "`resume` and `repair` continue": (
        "cli_replay:test_resume_does_not_work_in_the_folder_of_the_run",
    ),
    "They accept only the stages": (
        "cli_replay:test_a_journal_gives_only_arguments_that_our_parser_accepts",
        "cli_replay:test_a_journal_gives_only_fields_that_the_stage_accepts",
        "hostile_stores:test_other_files_among_the_journals_are_ignored",
    ),
    "You stay in your own working directory": (
        "cli_replay:test_resume_does_not_work_in_the_folder_of_the_run",
        "cli_replay:test_repair_does_not_work_in_the_folder_of_the_run",
    ),
    "Relative paths in the journal": (
        "cli_replay:test_places_are_found_from_any_folder",
        "cli_replay:test_relative_paths_in_a_recipe_are_found_from_any_folder",
        "cli_replay:test_a_module_of_the_runs_folder_is_not_imported",
    ),
    "The file of a network there": (
        "cli_replay:test_a_network_of_a_recipe_is_run_from_any_folder_if_it_is_trusted",
    ),
    "The journal names the recipe's file": (
        "cli_replay:test_a_recipe_that_was_edited_is_resumed_as_it_is_now",
    ),
    "Where a command runs is up to you": ("cli_replay:test_the_user_says_where_a_command_runs",),
    "`--address`, `--executor`": (
        "cli_replay:test_a_journal_does_not_say_where_a_command_runs",
        "cli_replay:test_every_field_that_names_a_place_has_a_mark",
    ),
    "No environment variable is set": ("cli_replay:test_the_environment_is_that_of_the_user",),
    "`INTRO_PIPE_DATA` only shows": (
        "cli_replay:test_a_data_root_of_the_runs_environment_is_not_written",
    ),
    "A run that writes outside the store": (
        "cli_replay:test_a_journal_does_not_say_what_is_written",
        "cli_replay:test_the_user_chooses_the_output_name",
        "cli_replay:test_the_set_of_a_stage_below_the_data_root_is_not_written_elsewhere",
        "cli_replay:test_forbidden_content_of_a_journal_is_refused_in_one_line",
    ),
    "Your own data root need not": (
        "cli_replay:test_a_data_root_of_the_runs_environment_is_not_written",
    ),
    "A URL outside the store": (
        "cli_replay:test_a_journal_says_nothing_that_is_fetched",
        "cli_replay:test_a_recipe_of_a_journal_fetches_nothing",
    ),
    "A key of a store": (
        "hostile_stores:test_a_key_does_not_lead_out_of_the_store",
        "hostile_stores:test_a_receipt_that_vouches_for_files_elsewhere_is_damaged",
        "hostile_stores:test_a_card_that_vouches_for_files_elsewhere_is_damaged",
        "hostile_files:test_an_invalid_plan_that_matches_its_folder_is_damaged",
    ),
    "The folder of a set may be a symbolic link": (
        "hostile_stores:test_a_set_may_be_on_another_disk",
        "hostile_stores:test_a_file_of_a_set_that_is_a_link_is_missing",
        "hostile_stores:test_a_pipe_in_place_of_a_file_does_not_block",
        "hostile_stores:test_a_device_in_place_of_a_file_counts_as_missing",
    ),
    "So `verify`, `repair` and the cleanup": (
        "hostile_stores:test_a_folder_of_a_set_that_is_a_link_is_refused",
    ),
    "Names of models, heads, results": (
        "hostile_stores:test_a_model_has_a_name_and_no_path",
        "hostile_stores:test_whatever_is_kept_has_a_name_and_no_path",
    ),
    "Downloaded archives": (
        "stages_data_download:test_a_wrong_checksum_is_refused_and_nothing_is_left",
        "hostile_stores:test_an_archive_of_anything_but_plain_files_of_the_set_is_refused",
    ),
    "Links, devices, absolute names": (
        "hostile_stores:test_an_archive_of_anything_but_plain_files_of_the_set_is_refused",
    ),
    "Image folders are read as they are": (
        "hostile_files:test_a_link_to_an_image_elsewhere_is_followed",
    ),
    "Files and folders of a store": ("hostile_stores:test_files_of_a_store_follow_the_umask",),
    "Anyone who can write to a store": (
        "hostile_files:test_pandas_metadata_of_samples_is_ignored",
    ),
    "Small files can expand": (
        "stages_sensing_checkpoint:test_compressed_archive_is_refused_by_its_listing",
        "store_tables:test_a_small_file_of_a_large_table_is_refused",
    ),
    "`.npz` and gzipped IDX files": (
        "hostile_files:test_an_array_that_unpacks_to_half_of_the_memory_is_refused",
        "stages_sensing_checkpoint:test_sparse_file_larger_than_half_of_the_memory_is_refused",
    ),
    "Compressed checkpoints, and those": (
        "stages_sensing_checkpoint:test_compressed_archive_is_refused_by_its_listing",
        "stages_sensing_checkpoint:test_pickle_that_asks_for_memory_is_refused",
        "stages_sensing_checkpoint:test_storage_that_is_larger_than_its_member_is_refused",
        "stages_sensing_checkpoint:test_safetensors_header_that_promises_more_is_refused",
    ),
    "A Parquet part must not": (
        "store_tables:test_a_small_file_of_a_large_table_is_refused",
        "stages_data_manifest:test_a_table_that_fills_the_memory_is_refused_before_it_is_unpacked",
        "stages_data_parquet_images:"
        "test_a_text_that_fills_the_memory_is_refused_before_it_is_unpacked",
    ),
    "Row groups with images": (
        "stages_data_parquet_images:test_an_image_that_fills_the_memory_in_each_row_is_refused",
    ),
    "Headers, labels and JSON in": (
        "stages_data_tar_images:test_sizes_that_lead_back_or_fill_the_memory_are_refused",
        "stages_data_tar_images:test_links_and_huge_images_are_left_out_and_counted",
    ),
    "A data set has at most": (
        "stages_data_manifest:test_too_many_columns_are_refused",
        "stages_data_tar_images:test_a_json_that_no_table_can_hold_is_refused",
    ),
    "In the JSON files of": ("stages_sensing_hf_config:test_sizes_without_bounds_are_refused",),
    "Pillow refuses decompression bombs": (
        "hostile_files:test_an_image_that_unpacks_to_too_much_is_an_unreadable_row",
    ),
    "A recipe has at most": (
        "pipeline_recipe_limits:test_a_long_text_is_refused_before_it_is_parsed",
        "pipeline_recipe_limits:test_a_flat_list_within_the_limit_is_refused_at_once",
        "pipeline_recipe_limits:test_a_short_recipe_that_expands_enormously_is_refused",
    ),
    "Names from a store are printed": (
        "hostile_stores:test_control_characters_in_names_are_escaped",
        "cli_frames:test_a_terminal_gets_no_escape_codes",
    ),
    "CSV files contain cells": (
        "cli_frames:test_a_formula_gets_an_apostrophe_on_request",
        "cli_frames:test_cells_are_not_escaped_in_files_and_pipes",
        "cli_report:test_formulas_in_a_copied_table_are_escaped_on_request",
    ),
    "Lists of `active-learn --ask`": (
        "stages_active_learning_labels:test_sample_ids_survive_the_list",
    ),
    "Checksums in receipts": (
        "store_verify:test_every_flipped_byte_in_any_file_is_found_and_repaired",
    ),
    "They are not signatures": ("hostile_files:test_pandas_metadata_of_samples_is_ignored",),
    "Without `--address` and": (
        "pipeline_kill:test_a_killed_ray_run_leaves_nothing_and_another_number_of_workers_finishes_it",
    ),
    "It has no dashboard": (
        "pipeline_executors:test_a_cluster_of_our_own_listens_on_the_loopback_alone_behind_a_token",
    ),
    "The GCS, the raylet": (
        "pipeline_executors:test_a_cluster_of_our_own_listens_on_the_loopback_alone_behind_a_token",
    ),
    "The ports of Ray's metrics": (
        "pipeline_executors:test_a_cluster_of_our_own_listens_on_the_loopback_alone_behind_a_token",
    ),
    "Sockets, logs and spilled objects": (
        "pipeline_isolation:test_the_folder_of_a_cluster_is_private_and_short",
        "pipeline_isolation:test_workers_import_nothing_from_the_folders_of_user_and_script",
    ),
    "Workers import installed modules": (
        "pipeline_isolation:test_workers_import_nothing_from_the_folders_of_user_and_script",
        "pipeline_isolation:test_ray_connects_from_a_neutral_folder",
    ),
    "The folder of your own network": (
        "pipeline_isolation:test_workers_import_nothing_from_the_folders_of_user_and_script",
    ),
    "A program that imports Ray before": (
        "pipeline_isolation:test_a_program_that_has_imported_ray_keeps_its_settings",
        "pipeline_executors:test_a_cluster_of_the_users_own_is_left_running",
    ),
    "Join a cluster only if": ADVICE,
    "`--address auto` finds": ADVICE,
    "`ray start --head` listens": ("ray_cluster:test_the_nodes_speak_with_a_token",),
    "Bugs in the libraries": ADVICE,
    "Nothing here is a sandbox": ADVICE,
    "Journals contain your command lines": (
        "pipeline_journal:test_a_run_names_the_process_that_wrote_it",
    ),
    "`tests/test_hostile_files.py`": ("hostile_files:test_the_traps_are_set",),
    "`tests/test_fuzz.py` modifies": (
        "fuzz:test_journals",
        "fuzz:test_weights",
        "fuzz:test_recipes",
    ),
    "`tests/test_security_page.py` names": ADVICE,
}
"""The start of each sentence, and the tests that check it, as FILE:NAME."""


def sentences(text: str) -> list[str]:
    """The sentences of paragraphs and list items, without headings."""
    blocks = re.split(r"\n\n|\n(?=- |#)", text)
    lines = [" ".join(block.removeprefix("- ").split()) for block in blocks]
    parts = [re.split(r"(?<=[.:]) (?=[A-Z`])", line) for line in lines if not line.startswith("#")]
    return [part for each in parts for part in each if part]


@cache
def names_of_tests(file: str) -> set[str]:
    tree = ast.parse((TESTS / f"test_{file}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_sentence_of_the_page_is_claimed_here_once() -> None:
    found = sentences(PAGE.read_text())
    starts = [[start for start in CLAIMS if sentence.startswith(start)] for sentence in found]
    assert [s for s, start in zip(found, starts, strict=True) if len(start) != 1] == []
    assert [start for (start,) in starts] == list(CLAIMS)


def test_every_test_that_a_sentence_names_exists() -> None:
    named = {tuple(test.split(":")) for tests in CLAIMS.values() for test in tests}
    assert [(file, test) for file, test in sorted(named) if test not in names_of_tests(file)] == []
