"""Publishing to a repository with a model: changes of its owner stay, files of a former model are deleted."""
import dataclasses
import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils.sha import git_hash

from agmax_timm.weights.card import model_card
from agmax_timm.weights.card_text import split_card
from agmax_timm.weights.update import ChangedError, Remote, plan_update

FILES = {'config.json': ('c1',), 'model.safetensors': ('w1',), 'summary.csv': ('s1',)}
AS_TEXT = {'config.json': ('c2',), 'model.safetensors': ('w2',)}


@pytest.fixture(scope='module')
def card(saved):
    """Function: the card of a model with this accuracy."""
    def make(top1=60., license=None, **kwargs):
        model = dataclasses.replace(saved, metrics={**saved.metrics, 'top1': top1}, **kwargs)
        return str(model_card(model, 'test_resnet', [1, 96], license=license))
    return make


@pytest.fixture(scope='module')
def published(card):
    """A repository after it was published once."""
    return remote_of(plan_update(None, card(), FILES).card)


def remote_of(card, files=FILES):
    found = {name: identifiers[0] for name, identifiers in files.items()}
    return Remote('0' * 40, card, {
        **found, 'README.md': git_hash(card.encode()), 'LICENSE': 'l1', 'examples/bee.jpg': 'b1'})


def edited(remote, *changes):
    text = remote.card
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return dataclasses.replace(remote, card=text)


def visible(text):
    """The text of a card without comments."""
    return re.sub(r'\s*<!--.*?-->\s*', '\n', text, flags=re.S).strip()


def test_publishing_the_same_model_changes_nothing(card, published):
    update = plan_update(published, card(), FILES)
    assert update.card == published.card and update.deletions == []
    assert update.lines == ['unchanged: config.json, model.safetensors, summary.csv, README.md']


def test_an_unchanged_card_is_replaced(card, published):
    """The result equals a first publication, except for the record of the files."""
    update = plan_update(published, card(70., 'mit'), AS_TEXT)
    fresh = plan_update(None, card(70., 'mit'), AS_TEXT)
    assert update.card == fresh.card and '60.0' not in update.card
    assert update.deletions == ['summary.csv']
    assert update.lines == ['replaced: config.json, model.safetensors, README.md', 'deleted: summary.csv']


def test_text_and_metadata_of_the_owner_are_kept(card, published):
    theirs = edited(
        published,
        ('---\n\n<!-- agmax_timm: about', '---\n\nOur bees, since 2019.\n\n<!-- agmax_timm: about'),
        ('<!-- agmax_timm: results', '## Ethics\n\nAsk the bees.\n\n<!-- agmax_timm: results'),
        ('<!-- agmax_timm wrote', 'Thanks to all.\n\n<!-- agmax_timm wrote'),
        ('library_name: timm\n', 'language: de\nlibrary_name: timm\n'),
        ('- agmax\n', '- agmax\n- bees\n'))
    update = plan_update(theirs, card(70.), FILES)
    fresh = visible(plan_update(None, card(70.), FILES).card).split('---\n', 2)[2]
    text = visible(update.card).split('---\n', 2)[2]
    owners = ('Our bees, since 2019.', '## Ethics\n\nAsk the bees.', 'Thanks to all.')
    for words in owners:
        assert text.count(words) == 1
        text = text.replace(words, '')
    assert re.sub(r'\s+', ' ', text).strip() == re.sub(r'\s+', ' ', fresh).strip()
    order = (owners[0], '# test_resnet', '## Ethics', '## Results', owners[2])
    assert sorted(order, key=update.card.index) == list(order)
    data = ModelCard(update.card).data.to_dict()
    assert data['language'] == 'de' and data['tags'] == ['image-classification', 'timm', 'agmax', 'bees']
    assert data['model-index'][0]['results'][0]['metrics'][0]['value'] == 70.
    assert re.search('^kept in README.md .*: tags, language, text$', update.lines[-1])
    again = plan_update(remote_of(update.card), card(70.), FILES)
    assert again.card == update.card
    third = plan_update(remote_of(update.card), card(80.), FILES).card
    assert all(words in third for words in owners) and '80.0' in third and '70.0' not in third


def test_a_card_of_ones_own_without_tags_keeps_those_of_the_hub(published):
    theirs = edited(published, ('tags:\n', '1: one\ntags:\n- bees\n'))
    update = plan_update(theirs, '---\nlicense: mit\n---\n\nOur bees.\n', FILES)
    metadata, body = split_card(update.card)
    assert (metadata['tags'], metadata[1]) == (['bees'], 'one') and 'Our bees.' in body
    kept, = (line for line in update.lines if line.startswith('kept in README.md as changed on the Hub: '))
    assert {'tags', '1'} <= {*kept.partition(': ')[2].split(', ')}


def test_a_model_without_agmax_loses_only_its_tag(card, published, saved):
    theirs = edited(published, ('- agmax\n', '- agmax\n- bees\n'))
    plain = card(options={**saved.options, 'agmax': False})
    assert ModelCard(plan_update(theirs, plain, FILES).card).data.tags == ['image-classification', 'timm', 'bees']


def test_a_section_without_news_keeps_changes_of_the_owner(card, published):
    theirs = edited(published, ('Ross Wightman', 'R. Wightman'))
    for _ in range(2):
        update = plan_update(theirs, card(70.), FILES)
        assert 'R. Wightman' in update.card and '70.0' in update.card
        assert re.search('^kept in README.md .*: section citation$', update.lines[-1])
        theirs = remote_of(update.card)


@pytest.mark.parametrize('section, ours_changed', [('citation', False), ('results', True)])
def test_a_deleted_section_is_not_added_again_and_is_logged(card, published, section, ours_changed):
    marks = rf'<!-- agmax_timm: {section} -->.*<!-- agmax_timm: end of {section} -->'
    assert (re.search(marks, published.card, re.S)[0] != re.search(marks, card(70.), re.S)[0]) == ours_changed
    theirs = remote_of(re.sub(marks, '', published.card, flags=re.S))
    for top1 in (70., 80.):
        update = plan_update(theirs, card(top1), FILES)
        assert f'## {section.title()}' not in update.card and f'value: {top1}' in update.card
        assert re.search(f'^left out of README.md .*: section {section}$', update.lines[-1])
        theirs = remote_of(update.card)
    replaced = plan_update(theirs, card(80.), FILES, replace_card=True)
    assert f'## {section.title()}' in replaced.card and 'as deleted' not in ''.join(replaced.lines)


def test_other_line_ends_are_not_treated_as_changes(card, published):
    theirs = dataclasses.replace(published, card=published.card.replace('\n', '\r\n'))
    assert plan_update(theirs, card(70.), FILES).card == plan_update(published, card(70.), FILES).card


@pytest.mark.parametrize('change, part', [
    (('| 60.0000 |', '| 99.0000 |'), 'section results'),
    (('value: 60.0\n', 'value: 99.0\n'), 'model-index'),
    (('<!-- agmax_timm: end of results -->', ''), 'its marks <!-- agmax_timm: ... --> are damaged'),
    (('library_name: timm\n', 'library_name: [timm\n'), 'its metadata are no YAML'),
])
def test_a_section_changed_on_both_sides_needs_a_flag(card, published, change, part):
    theirs = edited(published, change)
    with pytest.raises(ChangedError) as error:
        plan_update(theirs, card(70.), FILES)
    assert 'README.md was changed in parts' in str(error.value)
    assert part in str(error.value) and error.value.flags == ['--replace-card'] and '\n' not in str(error.value)
    assert plan_update(theirs, card(70.), FILES, replace_card=True).card == plan_update(
        published, card(70.), FILES).card


def test_files_of_others_need_a_flag(card, published):
    theirs = dataclasses.replace(published, files={
        **published.files, 'config.json': 'x', 'summary.csv': 'y', 'preprocessor_config.json': 'z'})
    with pytest.raises(ChangedError) as error:
        plan_update(theirs, card(70.), AS_TEXT)
    assert 'config.json, summary.csv, preprocessor_config.json' in str(error.value)
    assert ': --replace-files ' in str(error.value)
    update = plan_update(theirs, card(70.), AS_TEXT, replace_files=True)
    assert sorted(update.deletions) == ['preprocessor_config.json', 'summary.csv']
    same = dataclasses.replace(published, files={**published.files, 'config.json': 'c2'})
    assert plan_update(same, card(70.), AS_TEXT).deletions == ['summary.csv']


def test_the_model_of_another_program_needs_both_flags(card):
    theirs = Remote('0' * 40, '---\nlicense: mit\n---\n# Theirs\n', {'config.json': 'x', 'pytorch_model.bin': 'y'})
    with pytest.raises(ChangedError) as error:
        plan_update(theirs, card(), FILES)
    assert error.value.flags == ['--replace-files', '--replace-card'] and '(text)' in str(error.value)
    update = plan_update(theirs, card(), FILES, replace_card=True, replace_files=True)
    assert update.deletions == ['pytorch_model.bin'] and 'Theirs' not in update.card


def test_a_card_without_a_model_is_kept_above_ours(card):
    """The Hub makes such a card for a new repository with a licence."""
    theirs = Remote('0' * 40, '---\nlicense: mit\n---\n# Bees\n', {'README.md': 'x', '.gitattributes': 'y'})
    text = plan_update(theirs, card(), FILES).card
    assert visible(text).split('---\n')[2].startswith('# Bees\n') and '# test_resnet' in text
    assert ModelCard(text).data.license == 'mit' and '- **Licence:** mit\n' in text and 'none is stated' not in text


def test_a_licence_chosen_on_the_hub_is_kept(card, published):
    """It is not replaced by that of other initial weights. --license replaces it."""
    theirs = edited(published, ('license: other\n', 'license: mit\n'))
    for _ in range(2):
        update = plan_update(theirs, card(70.), FILES)
        assert ModelCard(update.card).data.license == 'mit' and '- **Licence:** mit\n' in update.card
        theirs = remote_of(update.card)
    with pytest.raises(ChangedError, match=r'\(license\): --replace-card replaces it, --license chooses a licence'):
        plan_update(theirs, card(70., 'cc-by-nc-4.0'), FILES)
    chosen = plan_update(theirs, card(70., 'cc-by-nc-4.0'), FILES, license_chosen=True).card
    assert ModelCard(chosen).data.license == 'cc-by-nc-4.0' and '- **Licence:** cc-by-nc-4.0\n' in chosen


@pytest.mark.parametrize('record', [
    '{', '{}', '[1]', '{"files": [1]}', '{"files": {"LICENSE": "l1"}, "sections": {"a": 1}}'])
def test_an_invalid_record_deletes_nothing(card, published, record):
    text = re.sub(r'(<!-- agmax_timm wrote ).*( -->)', rf'\1{record}\2', published.card)
    with pytest.raises(ChangedError):
        plan_update(remote_of(text), card(70.), AS_TEXT)
    update = plan_update(remote_of(text), card(70.), AS_TEXT, replace_card=True, replace_files=True)
    assert update.deletions == ['summary.csv']
