"""The Azure resources behind the fine-tuning loop, declared with Pulumi, and the contract of their outputs."""
