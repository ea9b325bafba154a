"""The functions that execute the ops of a plan: plain functions of tensors, one per target of the rule table."""

from superscaler.runtime.ops.call import DTYPES as DTYPES
from superscaler.runtime.ops.call import bind as bind
from superscaler.runtime.ops.call import execute as execute
from superscaler.runtime.ops.creation import set_device as set_device
from superscaler.runtime.ops.sleeping import sleep as sleep
from superscaler.runtime.ops.sleeping import sleep_each as sleep_each
from superscaler.runtime.ops.table import HANDING_ON as HANDING_ON
from superscaler.runtime.ops.table import INPLACE as INPLACE
from superscaler.runtime.ops.table import OUT_FORMS as OUT_FORMS
from superscaler.runtime.ops.table import function as function
