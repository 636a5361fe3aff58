/**
 * The host's end of the channel to a guest's agent (protocol.ts): one connection, any number of commands and questions.
 *
 * QEMU serves one client of the port's socket at a time: `AgentLink` is what a daemon keeps for each VM, one connection
 * for everybody, made again when it is lost. What was running over a lost one ends with AGENT_LOST; the guest hangs those commands up.
 * Bounded: every stream by its credit, what waits for the guest by ROOMY, questions by a time limit.
 * What a guest says of itself (`info`) is checked for its form and is never more than a guest's word.
 */
import { randomBytes } from 'node:crypto'
import { createConnection, isIPv4, isIPv6, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { NoidError } from '../../../errors.ts'
import type { ExecRequest, ExecSession } from '../../contract.ts'
import {
  ask,
  BrokenWire,
  EPOCH_BYTES,
  type Frame,
  frame,
  GuestReader,
  hello,
  MAX_REQUEST,
  readTexts,
  tell,
  texts,
  VERSION,
} from './protocol.ts'
import { Session } from './session.ts'

/** Bytes that may wait for the guest before streams pause. */
const ROOMY = 256 * 1024
const RETRY_MS = 20
/** A guest that is still booting is greeted again until it answers; QEMU keeps what nobody reads yet. */
const GREET_MS = 1_000
const CALL_MS = 20_000

/** IPv4 the guest asks for by DHCP, where there is any; IPv6 it is given, usable at once. */
export interface GuestNetwork {
  readonly ipv4: boolean
  /** "fd12::10/64" */
  readonly address6?: string
  readonly servers6: readonly string[]
  readonly search: readonly string[]
}

/** What a VM is told when it goes on under its own name, and at its first boot. */
export interface GuestIdentity {
  readonly hostname?: string
  /** Of the nic; it is set down and up. */
  readonly mac?: string
  /** The lease is another VM's: the DHCP client begins anew. */
  readonly renew?: boolean
  /** Set the guest's clock to this host's. */
  readonly clock?: boolean
  /** Entropy for the guest's random pool, at most 512 bytes. */
  readonly seed?: Uint8Array
  readonly files?: readonly { readonly path: string; readonly mode: number; readonly text: string }[]
  /** New /etc/machine-id, new ssh host keys, where there are any. */
  readonly machineId?: boolean
  readonly hostKeys?: boolean
  /** Directories of the host by virtio-fs. */
  readonly mounts?: readonly { readonly tag: string; readonly target: string; readonly readonly: boolean }[]
  /** A program and its arguments, run to its end as root. */
  readonly run?: readonly string[]
  /** What the network reserves for this VM; absent: it is to find out itself. */
  readonly network?: GuestNetwork
  /** Answer only when the nic has an IPv4 address, at most so long. */
  readonly waitMs?: number
  /** eth0 when absent. */
  readonly nic?: string
}

/** A guest's word. */
export interface GuestInfo {
  readonly hostname: string
  readonly kernel: string
  readonly uptimeMs: number
  readonly mac: string
  /** Of the nic, without prefix. */
  readonly address: string | undefined
  /** "fd12::10/64", link-local ones too. */
  readonly addresses6: readonly string[]
}

export class AgentClient {
  readonly #socket: Socket
  readonly #epoch: Buffer
  readonly #vm: string
  readonly #sessions = new Map<number, Session>()
  readonly #calls = new Map<number, { done: (words: string[]) => void; fail: (e: Error) => void }>()
  readonly #waiting: (() => void)[] = []
  #lastStream = 0
  #lost: NoidError | undefined
  /** Resolves when the connection has ended, for whatever reason. */
  readonly closed: Promise<void>

  /** Resolves when the agent has answered. Tries until `signal` says no; then AGENT_SILENT. */
  static async connect(path: string, signal: AbortSignal, vm = 'the VM'): Promise<AgentClient> {
    for (;;) {
      if (signal.aborted) throw new NoidError('AGENT_SILENT', { vm })
      const socket = await dial(path)
      if (socket === undefined) {
        await sleep(RETRY_MS, undefined, { signal }).catch(() => {})
        continue
      }
      const epoch = randomBytes(EPOCH_BYTES)
      const reader = await greet(socket, epoch, signal)
      if (reader === undefined) {
        socket.destroy()
        await sleep(RETRY_MS, undefined, { signal }).catch(() => {})
        continue
      }
      if (reader.reader.version !== VERSION) {
        socket.destroy()
        throw new NoidError('AGENT_LOST', {
          vm,
          why: `it speaks version ${reader.reader.version}, this noid ${VERSION}`,
        })
      }
      return new AgentClient(socket, epoch, vm, reader.reader, reader.first)
    }
  }

  private constructor(socket: Socket, epoch: Buffer, vm: string, reader: GuestReader, first: readonly Frame[]) {
    this.#socket = socket
    this.#epoch = epoch
    this.#vm = vm
    const ended = Promise.withResolvers<void>()
    this.closed = ended.promise
    const guarded = (fn: () => void): void => {
      try {
        fn()
      } catch (e) {
        const why = e instanceof BrokenWire ? `it sent ${e.message}` : `${e}`
        this.#lose(new NoidError('AGENT_LOST', { vm, why }, { cause: e }))
      }
    }
    socket.on('data', (chunk: Buffer) =>
      guarded(() => {
        for (const f of reader.push(chunk)) {
          if (this.#lost !== undefined) return
          this.#take(f)
        }
      }),
    )
    socket.on('drain', () => {
      for (const then of this.#waiting.splice(0)) then()
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      this.#lose(new NoidError('AGENT_LOST', { vm, why: 'QEMU closed it' }))
      ended.resolve()
    })
    guarded(() =>
      first.forEach((f) => {
        this.#take(f)
      }),
    )
    socket.resume()
  }

  get alive(): boolean {
    return this.#lost === undefined
  }

  /** A command; resolves when it runs. Throws EXEC_FAILED with the guest's sentence. */
  async exec(r: ExecRequest): Promise<ExecSession> {
    const id = this.#nextStream()
    const head = Buffer.alloc(9)
    head[0] = r.tty ? 1 : 0
    head.writeUInt16BE((r.rows ?? 0) & 0xffff, 1)
    head.writeUInt16BE((r.cols ?? 0) & 0xffff, 3)
    const env = Object.entries(r.env).map(([k, v]) => `${k}=${v}`)
    head.writeUInt32BE(env.length, 5)
    const request = Buffer.concat([head, texts([r.user ?? '', r.cwd ?? '', ...env, ...r.argv])])
    if (request.length > MAX_REQUEST)
      throw new NoidError('EXEC_FAILED', { vm: this.#vm, why: 'its words and variables are longer than 1 MiB' })
    const session = new Session(this.#wire, id, r.tty)
    this.#sessions.set(id, session)
    this.#send(ask.exec, id, request)
    try {
      await session.started
    } catch (e) {
      throw e instanceof NoidError ? e : new NoidError('EXEC_FAILED', { vm: this.#vm, why: (e as Error).message })
    }
    return session
  }

  async info(nic?: string): Promise<GuestInfo> {
    return parseInfo(await this.#call('info', nic === undefined ? [] : ['nic', nic]))
  }

  /** Answers when all of it is done. */
  async configure(c: GuestIdentity, timeoutMs = CALL_MS + (c.waitMs ?? 0)): Promise<GuestInfo> {
    const words: (string | Uint8Array)[] = []
    const add = (key: string, value: string | Uint8Array | undefined): void => {
      if (value !== undefined) words.push(key, value)
    }
    const flag = (b: boolean | undefined): string | undefined => (b === true ? '1' : undefined)
    if (c.network !== undefined) {
      const { ipv4, address6 } = c.network
      add('families', `${ipv4 ? '4' : ''}${address6 === undefined ? '' : '6'}`)
      add('address6', address6)
      if (address6 !== undefined) add('inet6', linesOf(address6, c.network))
    }
    add('hostname', c.hostname)
    add('mac', c.mac)
    add('renew', flag(c.renew))
    add('seed', c.seed?.subarray(0, 512))
    for (const f of c.files ?? []) add('file', `${f.mode.toString(8).padStart(3, '0')} ${f.path}\0${f.text}`)
    add('machineid', flag(c.machineId))
    add('keys', flag(c.hostKeys))
    for (const m of c.mounts ?? []) add('mount', `${m.tag}\0${m.target}\0${m.readonly ? 'ro' : 'rw'}`)
    for (const w of c.run ?? []) add('run', w)
    add('wait', c.waitMs?.toString())
    add('nic', c.nic)
    if (c.clock === true) add('time', (Date.now() / 1000).toFixed(3))
    return parseInfo(await this.#call('configure', words, timeoutMs))
  }

  /** Orders the end; the guest is gone when QEMU is. Resolves when the order was taken. */
  async poweroff(how: 'off' | 'reboot' = 'off', graceMs = 2_000): Promise<void> {
    await this.#call('poweroff', ['how', how, 'grace', String(graceMs)])
  }

  close(): void {
    this.#lose(new NoidError('AGENT_LOST', { vm: this.#vm, why: 'noid closed it' }))
  }

  async #call(
    name: string,
    words: readonly (string | Uint8Array)[],
    timeoutMs = CALL_MS,
  ): Promise<Map<string, string>> {
    const id = this.#nextStream()
    const answer = Promise.withResolvers<string[]>()
    this.#calls.set(id, { done: answer.resolve, fail: answer.reject })
    const timer = setTimeout(() => answer.reject(new NoidError('AGENT_SILENT', { vm: this.#vm })), timeoutMs)
    try {
      this.#send(ask.call, id, texts([name, ...words]))
      const pairs = await answer.promise
      const out = new Map<string, string>()
      for (let i = 0; i + 1 < pairs.length; i += 2) out.set(pairs[i] as string, pairs[i + 1] as string)
      return out
    } finally {
      clearTimeout(timer)
      this.#calls.delete(id)
    }
  }

  /** The whole range before one comes again: what is late for an old one finds nobody. */
  #nextStream(): number {
    if (this.#lost !== undefined) throw this.#lost
    for (let i = 0; i < 0x10000; i++) {
      this.#lastStream = (this.#lastStream + 1) & 0xffff
      if (!this.#sessions.has(this.#lastStream) && !this.#calls.has(this.#lastStream)) return this.#lastStream
    }
    throw new NoidError('EXEC_FAILED', { vm: this.#vm, why: 'it runs too many commands' })
  }

  #take(f: Frame): void {
    if (f.type === tell.reply) {
      const call = this.#calls.get(f.stream)
      if (f.payload.length === 0) throw new BrokenWire('an empty answer')
      const words = readTexts(f.payload.subarray(1))
      if (f.payload[0] === 1) call?.done(words)
      else call?.fail(new NoidError('AGENT_REFUSED', { vm: this.#vm, why: plain(words[0] ?? '') }))
      return
    }
    if (!Object.values<number>(tell).includes(f.type)) throw new BrokenWire(`a frame of type ${f.type}`)
    this.#sessions.get(f.stream)?.take(f.type, f.payload)
  }

  #send(type: number, stream: number, payload?: Uint8Array): void {
    if (this.#lost === undefined) this.#socket.write(frame(this.#epoch, type, stream, payload))
  }

  readonly #wire = ((client: AgentClient) => ({
    send: (type: number, stream: number, payload?: Uint8Array): void => client.#send(type, stream, payload),
    get roomy(): boolean {
      return client.#socket.writableLength < ROOMY
    },
    whenRoomy: (then: () => void): void => {
      client.#waiting.push(then)
    },
    forget: (stream: number): void => {
      client.#sessions.delete(stream)
    },
  }))(this)

  #lose(e: NoidError): void {
    if (this.#lost !== undefined) return
    this.#lost = e
    this.#socket.destroy()
    for (const s of [...this.#sessions.values()]) s.lose(e)
    for (const c of this.#calls.values()) c.fail(e)
    for (const then of this.#waiting.splice(0)) then()
  }
}

/** The one connection to a VM's agent, shared, made when it is asked for and made again when it was lost. */
export class AgentLink {
  readonly #path: string
  readonly #vm: string
  #client: AgentClient | undefined
  #trying: { readonly client: Promise<AgentClient>; readonly stop: AbortController; waiters: number } | undefined

  constructor(path: string, vm: string) {
    this.#path = path
    this.#vm = vm
  }

  async client(signal: AbortSignal): Promise<AgentClient> {
    if (this.#client?.alive) return this.#client
    if (this.#trying === undefined) {
      const stop = new AbortController()
      const client = AgentClient.connect(this.#path, stop.signal, this.#vm)
      const mine = { client, stop, waiters: 0 }
      this.#trying = mine
      client
        .then((c) => {
          if (stop.signal.aborted) c.close()
          else this.#client = c
        })
        .catch(() => {})
        .finally(() => {
          if (this.#trying === mine) this.#trying = undefined
        })
    }
    const t = this.#trying
    t.waiters += 1
    const silent = Promise.withResolvers<never>()
    const gone = (): void => silent.reject(new NoidError('AGENT_SILENT', { vm: this.#vm }))
    if (signal.aborted) gone()
    signal.addEventListener('abort', gone, { once: true })
    try {
      return await Promise.race([t.client, silent.promise])
    } finally {
      signal.removeEventListener('abort', gone)
      t.waiters -= 1
      if (t.waiters === 0) t.stop.abort()
    }
  }

  close(): void {
    this.#trying?.stop.abort()
    this.#trying = undefined
    this.#client?.close()
    this.#client = undefined
  }
}

/** A connection, or undefined when nobody listens (yet). */
function dial(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = createConnection({ path })
    socket.once('connect', () => {
      socket.removeAllListeners('error')
      resolve(socket)
    })
    socket.once('error', () => resolve(undefined))
  })
}

/** HELLO until the WELCOME; undefined when the connection ends or `signal` says no. */
async function greet(
  socket: Socket,
  epoch: Buffer,
  signal: AbortSignal,
): Promise<{ reader: GuestReader; first: Frame[] } | undefined> {
  const reader = new GuestReader(epoch)
  const first: Frame[] = []
  const say = (): void => {
    // What is not taken yet is a HELLO already.
    if (socket.writableLength === 0) socket.write(hello(epoch))
  }
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const data = (chunk: Buffer): void => {
    try {
      for (const f of reader.push(chunk)) first.push(f)
      if (reader.version !== undefined) resolve(true)
    } catch {
      resolve(false)
    }
  }
  const no = (): void => resolve(false)
  socket.on('data', data).on('close', no).on('error', no)
  signal.addEventListener('abort', no, { once: true })
  const timer = setInterval(say, GREET_MS)
  say()
  const answered = await promise
  clearInterval(timer)
  signal.removeEventListener('abort', no)
  socket.pause()
  socket.off('data', data).off('close', no).off('error', no)
  socket.on('error', () => {})
  return answered && !signal.aborted ? { reader, first } : undefined
}

/** What ../guest/files reads: the comment says the next configuration what to take away. */
function linesOf(cidr: string, n: GuestNetwork): string {
  const word = (s: string): string => s.replace(/[^\w.:-]/g, '')
  const search = n.search.map(word)
  return [
    `# ${cidr}`,
    `address ${cidr.slice(0, cidr.indexOf('/'))} ${search[0] ?? ''}`.trimEnd(),
    ...n.servers6.map((s) => `nameserver ${word(s)}`),
    ...(search.length === 0 ? [] : [`search ${search.join(' ')}`]),
    '',
  ].join('\n')
}

const plain = (text: string): string =>
  text
    .slice(0, 300)
    .replace(/\p{Cc}+/gu, ' ')
    .trim()

function parseInfo(m: Map<string, string>): GuestInfo {
  const address = m.get('address') ?? ''
  const uptime = Number(m.get('uptime'))
  return {
    hostname: plain(m.get('hostname') ?? ''),
    kernel: plain(m.get('osrelease') ?? ''),
    uptimeMs: Number.isFinite(uptime) ? Math.round(uptime * 1000) : 0,
    mac: plain(m.get('mac') ?? ''),
    address: isIPv4(address) ? address : undefined,
    addresses6: (m.get('address6') ?? '')
      .split(' ')
      .slice(0, 32)
      .filter((a) => /^[0-9a-f:.]{2,45}\/\d{1,3}$/.test(a) && isIPv6(a.slice(0, a.indexOf('/')))),
  }
}
