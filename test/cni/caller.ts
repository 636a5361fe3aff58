/** A small CNI engine: runs bin/noid-cni.mjs as the specification says and gives back its code and what it printed. */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

export const PLUGIN = fileURLToPath(new URL('../../bin/noid-cni.mjs', import.meta.url))

export interface Answer {
  readonly exit: number | null
  /** undefined: nothing was printed. */
  // biome-ignore lint/suspicious/noExplicitAny: a result or an error, as the test knows
  readonly json: any
  readonly ms: number
}

export interface Invocation {
  readonly command: string
  readonly id?: string
  readonly netns?: string
  readonly ifname?: string
  readonly args?: string
  readonly conf: unknown
  readonly env?: Record<string, string>
}

export function invoke(i: Invocation): Promise<Answer> {
  const env: NodeJS.ProcessEnv = {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    CNI_COMMAND: i.command,
    CNI_PATH: '/opt/cni/bin',
    ...i.env,
  }
  if (i.id !== undefined) env.CNI_CONTAINERID = i.id
  if (i.netns !== undefined) env.CNI_NETNS = i.netns
  if (i.ifname !== undefined) env.CNI_IFNAME = i.ifname
  if (i.args !== undefined) env.CNI_ARGS = i.args
  const began = performance.now()
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', PLUGIN], {
      env,
      stdio: ['pipe', 'pipe', 'inherit'],
      timeout: 150_000,
    })
    let out = ''
    child.stdout.setEncoding('utf8').on('data', (t: string) => {
      out += t
    })
    child.stdin.on('error', () => {})
    child.stdin.end(typeof i.conf === 'string' ? i.conf : JSON.stringify(i.conf))
    child.once('error', reject)
    child.once('close', (exit) => {
      const json = out === '' ? undefined : (JSON.parse(out) as unknown)
      resolve({ exit, json, ms: performance.now() - began })
    })
  })
}
