"""The paper's lemma, theorem and Fisher trace on stored features, with figures."""
