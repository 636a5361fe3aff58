/** What the tests with real plugins need of the machine: why they cannot run, or false. */
import { existsSync } from 'node:fs'
import { missing } from '../plugins/needs.ts'

export const PLUGINS = '/usr/lib/cni'

export const needsPlugins = (...types: string[]): string | false =>
  missing() ||
  (types.every((t) => existsSync(`${PLUGINS}/${t}`))
    ? false
    : `needs the CNI plugins ${types.join(', ')} (containernetworking-plugins)`)
