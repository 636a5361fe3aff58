/**
 * A backend alone (userspace, unless another is named), in a process of its own inside the laboratory's host: what the daemon does with it,
 * without the daemon. It carries out verbs that come by IPC (agent-client.ts) and can be killed like a daemon.
 */
import { join } from 'node:path'
import { NoidError } from '../../src/errors.ts'
import { descriptor as bridge } from '../../src/plugins/bridge/index.ts'
import type {
  AttachRequest,
  BackendEvent,
  NetworkBackend,
  NetworkSpec,
  PublishSpec,
} from '../../src/plugins/contract.ts'
import { descriptor as userspace } from '../../src/plugins/userspace/index.ts'

export type Verb =
  | { readonly verb: 'createNetwork'; readonly spec: NetworkSpec }
  | { readonly verb: 'deleteNetwork'; readonly id: string }
  | { readonly verb: 'attach'; readonly request: AttachRequest }
  | { readonly verb: 'detach'; readonly id: string; readonly network: string }
  | { readonly verb: 'publish'; readonly spec: PublishSpec }
  | { readonly verb: 'unpublish'; readonly id: string }
  | { readonly verb: 'gc'; readonly network: string; readonly valid: readonly string[] }
  | { readonly verb: 'check'; readonly attachment: import('../../src/plugins/contract.ts').Attachment }
  | { readonly verb: 'stats'; readonly network: string }
  | { readonly verb: 'status' }
export type AgentMessage =
  | {
      readonly type: 'answer'
      readonly seq: number
      readonly result?: unknown
      readonly error?: { code: string; message: string }
    }
  | { readonly type: 'event'; readonly event: BackendEvent }
  | { readonly type: 'log'; readonly text: string }

const home = process.argv[2] as string
const descriptor = process.argv[3] === 'bridge' ? bridge : userspace
const say = (m: AgentMessage) => process.send?.(m)
const backend: NetworkBackend = (await descriptor.load())({
  runDir: join(home, 'run'),
  stateDir: join(home, 'state'),
  privileged: process.getuid?.() === 0,
  log: (level, message) => say({ type: 'log', text: `${level}: ${message}` }),
  notify: (event) => say({ type: 'event', event }),
})
const signal = new AbortController().signal

function carryOut(v: Verb): Promise<unknown> {
  switch (v.verb) {
    case 'createNetwork':
      return backend.createNetwork({ ...v.spec, config: backend.parseConfig(v.spec.config) }, signal)
    case 'deleteNetwork':
      return backend.deleteNetwork(v.id, signal)
    case 'attach':
      return backend.attach(v.request, signal)
    case 'detach':
      return backend.detach(v.id, undefined, signal)
    case 'publish':
      return backend.ports!.publish(v.spec, signal)
    case 'unpublish':
      return backend.ports!.unpublish(v.id, signal)
    case 'gc':
      return backend.gc(v.network, v.valid, signal)
    case 'check':
      return backend.check(v.attachment, signal)
    case 'stats':
      return backend.stats!(v.network)
    case 'status':
      return backend.status(signal)
  }
}

process.on('message', async (m: Verb & { seq: number }) => {
  try {
    say({ type: 'answer', seq: m.seq, result: await carryOut(m) })
  } catch (e) {
    const code = e instanceof NoidError ? e.code : 'FAULT'
    say({
      type: 'answer',
      seq: m.seq,
      error: { code, message: `${(e as Error).message}${code === 'FAULT' ? `\n${(e as Error).stack}` : ''}` },
    })
  }
})
process.on('disconnect', () => process.exit(0))
