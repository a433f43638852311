import pytest
from itg_data.errors import ItgError
from itg_eval.lmms.forms import HOSTS, choose_form


@pytest.mark.parametrize(
    ("host", "is_simple", "form"),
    [
        ("qwen3_vl", False, "video_list"),
        ("qwen3_vl", True, "images"),
        ("internvl3_5", True, "clip"),
        ("llava_onevision", True, "pil_video"),
        ("vllm", False, "images"),
    ],
)
def test_the_form_goes_by_the_host_and_the_kind_of_its_class(host, is_simple, form):
    assert choose_form(host, is_simple, None) == form


def test_the_form_can_be_chosen_for_any_host():
    assert choose_form("qwen3_vl", False, "clip") == "clip"
    assert choose_form("somebody_elses", True, "images") == "images"


def test_a_host_that_is_not_in_the_table_is_not_guessed_at():
    with pytest.raises(ItgError, match=r"somebody_elses \(simple\) takes frames: add frames_as="):
        choose_form("somebody_elses", True, None)


@pytest.mark.parametrize(("is_simple", "form"), [(True, "video_list"), (False, "pil_video")])
def test_a_form_for_the_other_kind_of_host_is_refused(is_simple, form):
    with pytest.raises(ItgError, match=f"frames_as={form} is for"):
        choose_form("qwen3_vl", is_simple, form)


def test_hosts_that_sample_files_themselves_are_told_how_many_frames_to_take():
    for host, forms in HOSTS.items():
        assert (forms.num_frames_arg is not None) == (forms.simple in ("clip", "pil_video")), host
