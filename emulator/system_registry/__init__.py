"""What the registry `azureml` holds in every subscription: foundation models and the component that fine-tunes them.

Names, inputs, defaults and tags are those of Azure's own (github.com/Azure/azureml-assets); weights and code are not.
"""
