"""A zoo of really trained models, clean and backdoored, by which every claimed error rate can be measured again."""
