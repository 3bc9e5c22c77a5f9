"""Which moments stay in 32 bits, for a role of a shared backbone as for a model of its own."""

import pytest

from align.models.adapters import save_pretrained
from align.models.load import load_causal_lm, load_critic, load_reward_model
from align.models.role_fit import plan_sharing
from align.models.role_loading import load_roles
from align.recipe.fields import OptimSection
from align.recipe.model_section import ModelSection
from align.trainers.optimization import make_optimizer
from tests.tiny_models import byte_tokenizer, save_causal_lm


@pytest.mark.needs("bitsandbytes")
@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"]])
def test_8_bit_moments_spare_embeddings_in_a_role_as_in_a_model_of_its_own(tmp_path, saved):
    base = save_causal_lm(tmp_path / "base", tie_word_embeddings=False)
    model = ModelSection(path=str(base), adapter="lora", lora={"rank": 2, "modules_to_save": saved})
    for name, load in (("sft", load_causal_lm), ("rm", load_reward_model)):
        save_pretrained(load(base, model), tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    sft, rm = str(tmp_path / "sft"), str(tmp_path / "rm")
    shared = load_roles(plan_sharing(sft, [rm], rm, model, byte_tokenizer().get_vocab()), model)
    for role, alone in ((shared.policy, load_causal_lm(sft, model)), (shared.critic, load_critic(rm, model))):
        spared = []
        for module in (role, alone):
            optimizer = make_optimizer(module, OptimSection(learning_rate=1e-3, optimizer="adamw_8bit"))
            kept = [getattr(part, name) for part, name, _ in optimizer.mng.module_weight_config_triple]
            trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            spared.append([tuple(one.shape) for one in kept if id(one) in trained])
        assert spared[0] == spared[1] == ([(259, 16)] if saved == ["embed_tokens"] else [])
