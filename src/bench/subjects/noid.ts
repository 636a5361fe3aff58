/** A backend of noid as a subject: loaded by an agent (agent.ts) inside the stand's host namespace. */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import type { AgentAnswer } from '../agent.ts'
import { Place } from '../place.ts'
import { makeHost, type Stand, type Subject, tune } from '../stand.ts'

const AGENT = fileURLToPath(new URL(`../agent${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))
const START_MS = 60_000

/** What is measured where many are attached: the rest would only take its time. */
const CROWDED = ['tcp-out-1', 'tcp-in-1', 'tcp-vm-1', 'udp-64-vm', 'rr-out', 'rss', 'idle']

/**
 * @param asUser the backend must not think it is root
 * @param attached how many VMs are on the network; more than two are idle
 */
export const noid = (backend: string, version: string, asUser: boolean, attached = 2): Subject => {
  const name = attached > 2 ? `${backend}-${attached}` : backend
  return { name, open: () => open(name, backend, version, asUser, attached) }
}

async function open(name: string, backend: string, version: string, asUser: boolean, attached: number): Promise<Stand> {
  const host = await makeHost()
  const user = asUser ? ['unshare', '--user', '--map-user=1000', '--map-group=1000'] : []
  // sysfs shows the devices of the namespace that mounted it.
  const sysfs = asUser ? [] : ['unshare', '--mount', 'sh', '-c', 'mount -t sysfs sysfs /sys; exec "$@"', 'sh']
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', AGENT, backend, String(attached)]
  const [tool, ...rest] = host.enter(...user, ...sysfs, ...node)
  const agent = spawn(tool as string, rest, { stdio: ['pipe', 'pipe', 'ignore'] })
  const answer = await new Promise<AgentAnswer>((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`not ready in ${START_MS / 1000} s`)), START_MS)
    agent.once('exit', () => reject(new Error('its process ended')))
    createInterface({ input: agent.stdout }).once('line', (l) => {
      clearTimeout(late)
      resolve(JSON.parse(l) as AgentAnswer)
    })
  })
  if (!answer.ok) throw new Error(answer.why)
  const guests = answer.guests.map((g) => ({ ...g, place: new Place(g.netns) }))
  for (const g of guests) await tune(g.place)
  return {
    name,
    kind: 'noid',
    version,
    note: `nic ${answer.nic}${asUser ? ', as an ordinary user' : ''}${attached > 2 ? `, ${attached} VMs attached` : ''}`,
    ...(attached > 2 ? { only: CROWDED } : {}),
    host,
    guests,
    out: true,
    published: answer.published,
    dns: answer.dns,
    pids: answer.pids,
  }
}
