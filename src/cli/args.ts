/** Arguments and flags that several commands share, so that they read the same everywhere. */
import { Args, Flags } from '@oclif/core'

export const vmArg = Args.string({
  ignoreStdin: true,
  name: 'NAME',
  description: "The VM; this directory's active one when left out.",
})
export const networkArg = Args.string({ ignoreStdin: true, description: 'The network.', required: true })
export const watchFlag = Flags.boolean({ char: 'w', summary: 'Show it again every second until interrupted.' })
