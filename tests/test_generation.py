"""Sampling: caches, completion, the paper's settings, and what in `generate` counts `vocab_size` columns."""

import json

import pytest
import torch
from tiny_models import random_tokens, tiny_causal, with_start
from transformers import DynamicCache, GenerationConfig, StaticCache, WatermarkDetector, WatermarkingConfig
from transformers.generation import SynthIDTextWatermarkingConfig

from hf_igpt import ImageGPTForCausalImageModeling
from hf_igpt.causal_generation_igpt import CACHE_NAME


START = 10  # of the tiny model


def prefix(model, length: int, batch: int = 2) -> torch.Tensor:
    return with_start(model.config, random_tokens(model.config, batch=batch))[:, :length]


def assert_images(sequences: torch.Tensor, tokens: int = 12) -> None:
    assert sequences.shape[1] == tokens + 1
    assert (sequences[:, 0] == sequences[0, 0]).all()
    assert (sequences[:, 1:] < sequences[0, 0]).all(), "the start token was sampled"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("chunks", [[1] * 12, [12], [5, 1, 4, 2]], ids=str)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_position(name, kind, chunks, backend):
    model = tiny_causal()
    model.set_attn_implementation(backend)
    ids = prefix(model, 12)
    cache = DynamicCache(config=model.config)
    if kind == "static":
        cache = StaticCache(config=model.config, max_cache_len=12)
    parts = []
    for part in ids.split(chunks, dim=1):
        parts.append(model(input_ids=part, use_cache=True, **{name: cache}).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(input_ids=ids).logits, atol=1e-12, rtol=0)
    assert int(cache.get_seq_length()) == 12


def test_a_cache_is_made_outside_training_where_the_config_says_so():
    model = tiny_causal()
    ids = prefix(model, 3)
    assert model(input_ids=ids).get(CACHE_NAME).get_seq_length() == 3
    assert model(input_ids=ids, use_cache=False).get(CACHE_NAME) is None
    assert model(labels=ids.clamp(max=9)).get(CACHE_NAME) is None
    assert model.train()(input_ids=ids).get(CACHE_NAME) is None
    assert tiny_causal(use_cache=False)(input_ids=ids).get(CACHE_NAME) is None


def test_one_cache_under_two_names_is_refused():
    model = tiny_causal()
    cache = DynamicCache(config=model.config)
    for call in (model, model.transformer):
        with pytest.raises(ValueError, match="give only one"):
            call(input_ids=prefix(model, 3), cache=cache, past_key_values=cache)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}])
def test_greedy_images_are_the_same_with_every_cache_and_without(options):
    model = tiny_causal()
    ids = prefix(model, 4)
    cached = model.generate(ids, do_sample=False, **options)
    assert_images(cached)
    assert torch.equal(cached, model.generate(ids, do_sample=False, use_cache=False))
    by_hand = ids
    while by_hand.shape[1] < 13:
        by_hand = torch.cat([by_hand, model(input_ids=by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(cached, by_hand)


def test_generate_without_input_gives_a_full_grid():
    model = tiny_causal()
    images = model.generate(num_return_sequences=3)
    assert images.shape == (3, 13)
    assert_images(images)
    assert not torch.equal(images[0], images[1])
    rgb = tiny_causal(image_size=[2, 3], num_channels=3)
    assert rgb.generate().shape == (1, 19)


def test_completion_keeps_its_prefix():
    model = tiny_causal()
    ids = prefix(model, 7)
    completed = model.generate(ids, num_return_sequences=2)
    assert_images(completed)
    assert torch.equal(completed[:, :7], ids.repeat_interleave(2, dim=0))
    assert len({tuple(row.tolist()) for row in completed}) == 4


def test_same_seed_same_images_and_another_seed_others():
    model = tiny_causal()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model.generate(num_return_sequences=4))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_an_image_with_a_generator_of_its_own_is_the_same_in_any_batch():
    model = tiny_causal()
    ids, options = prefix(model, 4, batch=3), {"temperature": 0.8, "top_k": 8, "top_p": 0.95}
    state = torch.get_rng_state()
    images = model.generate(ids, generator=generators(3, 4, 5), **options)
    assert torch.equal(torch.get_rng_state(), state)
    assert_images(images)
    for image, seed in enumerate((3, 4, 5)):
        alone = model.generate(ids[image : image + 1], generator=generators(seed), **options)
        assert torch.equal(alone[0], images[image])
    several = model.generate(ids[:1], num_return_sequences=3, generator=generators(3, 3, 4), **options)
    assert torch.equal(several[0], several[1]) and not torch.equal(several[0], several[2])


def test_one_generator_for_a_batch():
    model = tiny_causal()
    first, again, other = (
        model.generate(num_return_sequences=4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) == 4


def test_generators_draw_after_temperature_and_truncation():
    """And the value drawn is the one that `generate` takes, whatever other processors there are."""
    model = tiny_causal()
    options = {"temperature": 0.7, "top_k": 3, "suppress_tokens": [4], "renormalize_logits": True}
    seeds = list(range(200))
    images = model.generate(num_return_sequences=200, generator=generators(*seeds), **options)
    logits = model(input_ids=images[:1, :1]).logits[0, 0].index_fill(0, torch.tensor(4), -torch.inf)
    kept = logits.topk(3)
    expected = (kept.values / 0.7).softmax(-1).detach()
    counts = torch.stack([(images[:, 1] == value).sum() for value in kept.indices]).double()
    assert counts.sum() == 200
    assert ((counts / 200 - expected).abs() < 5 * (expected * (1 - expected) / 200).sqrt()).all()
    greedy = model.generate(generator=generators(0), do_sample=False)
    assert torch.equal(greedy, model.generate(do_sample=False))


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_generators_hide_no_damaged_logits(kind):
    model = tiny_causal(torch.float32)
    with torch.no_grad():
        model.lm_head.weight[7] = float(kind)
    with pytest.raises(RuntimeError, match="inf|nan"):
        model.generate(generator=generators(0))


def test_wrong_generators():
    model = tiny_causal()
    with pytest.raises(ValueError, match="one for each of the 3 images to be drawn, got 2"):
        model.generate(num_return_sequences=3, generator=generators(0, 1))
    with pytest.raises(ValueError, match="`generator` is for sampling.*num_beams=3"):
        model.generate(num_beams=3, generator=generators(0))


def test_samples_follow_the_models_probabilities():
    """Two pixels of four values, so that every image can be counted: nothing is truncated or tempered."""
    model = tiny_causal(vocab_size=5, image_size=[1, 2])
    images = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    expected = model(labels=images).logits.log_softmax(-1).gather(2, images[..., None]).sum((1, 2)).exp()
    samples = model.generate(num_return_sequences=20000)[:, 1:]
    counts = torch.bincount(samples[:, 0] * 4 + samples[:, 1], minlength=16)
    error = (expected * (1 - expected) / 20000).sqrt()
    assert ((counts / 20000 - expected).abs() < 5 * error).all()


def test_generation_config_is_the_papers_and_survives_saving(tmp_path):
    model = tiny_causal(torch.float32)
    expected = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": 13, "bos_token_id": 10}
    assert expected.items() <= model.generation_config.to_dict().items()
    assert model.generation_config.eos_token_id is None
    assert model.generation_config.pad_token_id is None
    model.save_pretrained(tmp_path)
    assert expected.items() <= json.loads((tmp_path / "generation_config.json").read_text()).items()
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert expected.items() <= again.generation_config.to_dict().items()
    torch.manual_seed(4)
    images = model.generate()
    torch.manual_seed(4)
    assert torch.equal(images, again.generate())


def test_a_users_generation_config_survives_saving(tmp_path):
    model = tiny_causal(torch.float32)
    model.generation_config = GenerationConfig(do_sample=True, top_k=3, max_length=6, bos_token_id=10)
    model.save_pretrained(tmp_path)
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path)
    assert again.generation_config.top_k == 3
    assert again.generate().shape == (1, 6)


@pytest.mark.parametrize("options", [{"max_length": 14}, {"max_new_tokens": 10}, {"max_length": 10**6}])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_more_tokens_than_the_grid_are_refused_before_the_first_is_sampled(options, cache):
    model = tiny_causal()
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="`max_length` must be at most 13"):
        model.generate(prefix(model, 4), cache_implementation=cache, **options)
    assert tiny_causal().generate(prefix(model, 4), max_new_tokens=9).shape == (2, 13)


@pytest.mark.parametrize("beams", [1, 3])
def test_transition_scores_are_the_log_probabilities_of_the_tokens(beams):
    model = tiny_causal()
    output = model.generate(
        prefix(model, 4),
        do_sample=False,
        num_beams=beams,
        num_return_sequences=beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    beam_indices = output.beam_indices if beams > 1 else None
    scores = model.compute_transition_scores(output.sequences, output.scores, beam_indices, normalize_logits=True)
    log_probs = model(input_ids=output.sequences[:, :-1]).logits.log_softmax(-1)
    by_hand = log_probs.gather(2, output.sequences[:, 1:, None])[..., 0][:, 3:]
    assert scores.shape == (2 * beams, 9)
    torch.testing.assert_close(scores.double(), by_hand, atol=1e-5, rtol=0)


def test_beam_search_as_wide_as_the_tree_finds_the_likeliest_images():
    model = tiny_causal(vocab_size=5, image_size=[1, 3])
    images = torch.cartesian_prod(*[torch.arange(4)] * 3)
    likelihoods = model(labels=images).logits.log_softmax(-1).gather(2, images[..., None]).sum((1, 2))
    found = model.generate(do_sample=False, num_beams=16, num_return_sequences=16)
    assert torch.equal(found[:, 1:], images[likelihoods.topk(16).indices])
    assert_images(model.generate(num_beams=3, do_sample=True), 3)


def test_repetition_penalty_counts_pixels_and_not_the_start_token():
    model = tiny_causal()
    ids = prefix(model, 3, batch=1)
    penalised = model.generate(
        ids,
        do_sample=False,
        repetition_penalty=1.7,
        output_logits=True,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for step, (logits, scores) in enumerate(zip(penalised.logits, penalised.scores, strict=True)):
        seen = penalised.sequences[0, 1 : 3 + step].unique()
        expected = logits[0].clone()
        expected[seen] = torch.where(expected[seen] < 0, expected[seen] * 1.7, expected[seen] / 1.7)
        torch.testing.assert_close(scores[0], expected)
    assert_images(penalised.sequences)


def test_encoder_penalties_count_the_prompts_pixels():
    model = tiny_causal()
    ids = prefix(model, 4, batch=1)
    output = model.generate(
        ids, encoder_repetition_penalty=4.0, output_logits=True, output_scores=True, return_dict_in_generate=True
    )
    assert_images(output.sequences)
    for logits, scores in zip(output.logits, output.scores, strict=True):
        expected, seen = logits[0].clone(), ids[0, 1:].unique()
        expected[seen] = torch.where(expected[seen] < 0, expected[seen] / 4, expected[seen] * 4)
        torch.testing.assert_close(scores[0], expected)
    assert_images(model.generate(ids, encoder_no_repeat_ngram_size=2))
    assert_images(model.generate(encoder_repetition_penalty=2.0))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(size):
    model = tiny_causal(vocab_size=31)
    images = model.generate(num_return_sequences=8, no_repeat_ngram_size=size)
    assert_images(images)
    for row in images[:, 1:].tolist():
        ngrams = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
        assert len(set(ngrams)) == len(ngrams)


def test_banned_and_forced_tokens():
    model = tiny_causal()
    images = model.generate(num_return_sequences=50, bad_words_ids=[[3], [1, 2]])
    assert_images(images)
    assert not (images == 3).any()
    assert not ((images[:, :-1] == 1) & (images[:, 1:] == 2)).any()
    suppressed = model.generate(num_return_sequences=50, suppress_tokens=[4, 5, START])
    assert_images(suppressed)
    assert not torch.isin(suppressed, torch.tensor([4, 5])).any()
    first = model.generate(num_return_sequences=50, begin_suppress_tokens=[0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert (first[:, 1] == 9).all()
    assert (first[:, 2] != 9).any()
    biased = model.generate(num_return_sequences=50, sequence_bias=[[[7], 50.0]])
    assert (biased[:, 1:] == 7).all()
    assert_images(model.generate(forced_bos_token_id=3))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 3}, lambda p: p >= p.topk(3).values[..., -1:]),
        ({"top_p": 0.6}, lambda p: nucleus(p, 0.6)),
        ({"min_p": 0.2}, lambda p: p >= 0.2 * p.amax(-1, keepdim=True)),
        ({"epsilon_cutoff": 0.05}, lambda p: p >= 0.05),
    ],
    ids=["top_k", "top_p", "min_p", "epsilon_cutoff"],
)
def test_truncation_keeps_the_tokens_it_should(options, kept):
    model = tiny_causal()
    output = model.generate(
        num_return_sequences=4, output_logits=True, output_scores=True, return_dict_in_generate=True, **options
    )
    assert_images(output.sequences)
    for logits, scores in zip(output.logits, output.scores, strict=True):
        assert torch.equal(scores.isfinite(), kept(logits.softmax(-1)))
        assert not scores.isfinite().all()


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    ordered, order = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, order, before < top_p)


@pytest.mark.parametrize("options", [{"typical_p": 0.7}, {"eta_cutoff": 0.05}, {"top_h": 0.5}, {"temperature": 0.5}])
def test_other_ways_to_truncate_give_images(options):
    assert_images(tiny_causal().generate(num_return_sequences=4, **options))


@pytest.mark.parametrize("scheme", ["lefthash", "selfhash"])
def test_a_watermark_is_found_again(scheme):
    model = tiny_causal(vocab_size=61, image_size=[8, 8])
    config = WatermarkingConfig(bias=8.0, seeding_scheme=scheme, context_width=1)
    plain, marked = (
        model.generate(num_return_sequences=2),
        model.generate(num_return_sequences=2, watermarking_config=config),
    )
    assert_images(marked, 64)
    # The detector takes the size of the vocabulary from a config, and the green lists are drawn over the 60 values.
    detector_config = type(model.config)(vocab_size=60, image_size=8)
    detector = WatermarkDetector(detector_config, device="cpu", watermarking_config=config)
    assert detector(marked[:, 1:], z_threshold=4.0).all()
    assert not detector(plain[:, 1:], z_threshold=4.0).any()


def test_synthid_watermark_gives_images():
    config = SynthIDTextWatermarkingConfig(keys=[3, 5, 7], ngram_len=3)
    assert_images(tiny_causal().generate(num_return_sequences=2, watermarking_config=config))


def test_prompt_lookup_gives_the_greedy_image():
    model = tiny_causal()
    ids = torch.tensor([[START, 3, 4, 5, 3, 4]])
    assert torch.equal(
        model.generate(ids, prompt_lookup_num_tokens=3, do_sample=False), model.generate(ids, do_sample=False)
    )
    assert_images(model.generate(ids, prompt_lookup_num_tokens=3))


def test_assisted_decoding_gives_the_greedy_image_and_samples_images():
    model, assistant = tiny_causal(), tiny_causal(seed=5, num_hidden_layers=1, hidden_size=12)
    ids = prefix(model, 4, batch=1)
    greedy = model.generate(ids, do_sample=False)
    assert not torch.equal(assistant.generate(ids, do_sample=False), greedy)
    assert torch.equal(model.generate(ids, assistant_model=assistant, do_sample=False), greedy)
    assert_images(model.generate(ids, assistant_model=assistant))


def test_an_assistant_with_another_palette_is_refused():
    model, assistant = tiny_causal(), tiny_causal(vocab_size=21)
    with pytest.raises(ValueError, match="[Vv]ocab|token"):
        model.generate(prefix(model, 4, batch=1), assistant_model=assistant)


def test_guidance_mixes_two_prompts():
    model = tiny_causal()
    ids = prefix(model, 4)
    negative = torch.full((2, 1), START)
    guided = model.generate(ids, guidance_scale=3.0, negative_prompt_ids=negative, do_sample=False)
    assert_images(guided)
    assert not torch.equal(guided, model.generate(ids, do_sample=False))


def test_vocabulary_size_is_put_back_after_a_failure():
    model = tiny_causal()
    with pytest.raises(ValueError):
        model.generate(bad_words_ids=[[START + 5]])
    assert model.config.vocab_size == 11


def test_trap_sampling_needs_no_hand_made_start_token_or_length():
    """transformers' example builds the context, the length and `top_k=40` by hand; its defaults truncate to 50."""
    model = tiny_causal(vocab_size=100)
    torch.manual_seed(0)
    images = model.generate(num_return_sequences=2)
    torch.manual_seed(0)
    by_hand = model.generate(
        torch.full((2, 1), 99), max_length=13, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
    )
    assert torch.equal(images, by_hand)
