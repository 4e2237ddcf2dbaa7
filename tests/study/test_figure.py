"""The figure of a study."""
import pytest

from agmax_timm.study import figure, results


def test_the_figure_has_the_seeds_the_means_and_the_intervals(fake, monkeypatch):
    """Values by hand: AgMax minus baseline is 1, 2, 3. The mean is 2 and the interval 2 ± 2.484."""
    pyplot = pytest.importorskip('matplotlib.figure')
    study, outcomes, _ = fake(
        {('baseline', 0): 10., ('baseline', 1): 20., ('baseline', 2): 60.,
         ('AgMax', 0): 11., ('AgMax', 1): 22., ('AgMax', 2): 63., ('mse', 1): 19.},
        methods={'baseline': {}, 'AgMax': {'agmax': True}, 'mse': {'agmax': True, 'agmax_loss': 'mse'}},
        seeds=[0, 1, 2], comparisons=[['AgMax', 'baseline']])
    study.published = {('', '', 'baseline'): 80., ('', '', 'AgMax'): 81.5}
    rows, shown = results.aggregate(study, outcomes), []
    monkeypatch.setattr(figure, 'save_figure', lambda path, draw, **size: draw(shown[0]))
    shown.append(pyplot.Figure())
    figure.draw(study, rows, results.compare(study, rows), 'figure.png')
    values, differences = shown[0].axes
    assert [line.get_xdata().tolist() for line in values.lines] == [
        [10, 20, 60], [30], [11, 22, 63], [32], [19], [19]]
    assert [label.get_text() for label in values.get_yticklabels()] == [
        'baseline', 'AgMax', 'mse', 'comparisons', 'AgMax minus baseline']
    drawn = [line.get_xdata() for line in differences.lines]
    assert [1, 2, 3] in [[*found] for found in drawn]
    intervals = [[*found] for found in drawn[1:] if len(found) == 2 and found[0] != found[1]]
    assert intervals == [pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-6)] * 2
    assert [1.5] in [[*found] for found in drawn] and [-1.] in [[*found] for found in drawn]
    texts = [label.get_text() for axes in differences.child_axes for label in axes.get_yticklabels()]
    assert texts == ['', '+2.00 (-0.48 to +4.48)', '-1.00', '+2.00 (-0.48 to +4.48)']


def test_the_figure_of_a_loss_says_its_direction(fake, monkeypatch):
    pyplot = pytest.importorskip('matplotlib.figure')
    study, outcomes, _ = fake({('baseline', 0): .5123, ('AgMax', 0): .51}, seeds=[0], metric='loss')
    shown = pyplot.Figure()
    monkeypatch.setattr(figure, 'save_figure', lambda path, draw, **size: draw(shown))
    figure.draw(study, results.aggregate(study, outcomes), [], 'figure.png')
    values, differences = shown.axes
    assert values.get_xlabel() == 'loss (smaller is better):\nseeds and mean'
    texts = [label.get_text() for axes in differences.child_axes for label in axes.get_yticklabels()]
    assert texts == ['', '-0.0023']


def test_the_figure_of_one_method_has_only_its_values(fake, monkeypatch):
    pyplot = pytest.importorskip('matplotlib.figure')
    study, outcomes, _ = fake({('baseline', 0): 10., ('baseline', 1): 20.}, methods={'baseline': {}}, seeds=[0, 1])
    shown = pyplot.Figure()
    monkeypatch.setattr(figure, 'save_figure', lambda path, draw, **size: draw(shown))
    figure.draw(study, results.aggregate(study, outcomes), [], 'figure.png')
    (values,) = shown.axes
    assert [line.get_xdata().tolist() for line in values.lines] == [[10, 20], [15]]
