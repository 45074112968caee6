from sklearn.utils.estimator_checks import parametrize_with_checks

from diffsight.features.estimator import HeadClassifier


@parametrize_with_checks([HeadClassifier(), HeadClassifier("knn"), HeadClassifier("logistic")])
def test_it_is_a_scikit_learn_classifier(estimator, check):
    check(estimator)
