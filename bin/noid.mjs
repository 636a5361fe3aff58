#!/usr/bin/env node
/** The door of the command line: src/cli/main.ts, under the Node that noid supports. */
import { fileURLToPath } from 'node:url'
import { load, supported } from './supported.mjs'

await supported(fileURLToPath(import.meta.url), async (argv) => (await load('cli/main')).main(argv))
