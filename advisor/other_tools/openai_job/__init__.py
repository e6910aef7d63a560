"""Fine-tuning jobs that people export from OpenAI: read, and answered for with an open model.

`job` reads one, `files` recognises a file of them, `service` knows when the service ends, `answers`
says what a job tells of its owner's situation, `carry` what of it goes into a plan.
"""
