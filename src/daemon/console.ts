/**
 * A VM's serial console for a client: the runtime's line as a command's session, over the frames of src/api/exec.ts.
 *
 * stdin is what is typed, stdout what the line says; it ends with code 0 when the VM does. Several clients may look at
 * once: that, and the scrollback, is the runtime's. A runtime without a serial line says so and what to use instead.
 */
import { PassThrough } from 'node:stream'
import { NoidError } from '../errors.ts'
import type { ExecSession, Runtime } from '../runtimes/contract.ts'
import { bounded, limitMs } from './bounded.ts'
import { type Control, specOf } from './control.ts'
import type { VmRecord } from './store.ts'

export async function openConsole(c: Control, v: VmRecord): Promise<ExecSession> {
  const runtime: Runtime = await c.runtimes.get(v.runtime)
  if (runtime.console === undefined) throw new NoidError('NO_CONSOLE', { name: v.name, runtime: v.runtime })
  const handle = v.handle
  if (v.phase !== 'running' || handle === null) throw new NoidError('VM_NOT_RUNNING', { name: v.name })
  const line = await bounded('opening the console', limitMs.start, async () =>
    runtime.console?.(specOf(c.paths, v), handle),
  )
  if (line === undefined) throw new NoidError('NO_CONSOLE', { name: v.name, runtime: v.runtime })
  const { promise: exit, resolve } = Promise.withResolvers<number>()
  line.once('end', () => resolve(0)).once('close', () => resolve(0))
  // The end of what is typed is not the end of looking.
  const stdin = new PassThrough()
  stdin.pipe(line, { end: false })
  stdin.once('close', () => {
    if (!stdin.writableFinished) line.destroy()
  })
  return { stdin, stdout: line, stderr: undefined, signal: () => line.destroy(), resize: () => {}, exit }
}
